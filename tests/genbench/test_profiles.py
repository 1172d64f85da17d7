"""Accelerated profiles: which there are, how far frames are apart, and the table of a whole run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from everface import cli
from everface.core import config
from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.genbench.manifest import BenchmarkSet
from everface.genbench.profiles.distance import C1, C2, compare_frames, psnr, ssim
from everface.genbench.profiles.offered import offered_profiles
from everface.genbench.profiles.publish import ProfileReport, ProfileRow, to_markdown


def test_every_faster_choice_is_a_profile() -> None:
    profiles, absent = offered_profiles(StreamConfig(), Deployment(), heads_profiled=False)
    assert [p.name for p in profiles] == ["exact", *config.SAMPLERS[1:], *config.DTYPES[1:]]
    assert [p.name for p in profiles if "emulated" in p.note] == ["fp8", "fp8-attention"]  # bfloat16 is computed as such
    assert "everface profile kv" in absent["kv-keep"]
    assert profiles[1].stream.sampler == "skip-null" and profiles[1].deployment == Deployment()
    assert profiles[2].stream == StreamConfig() and profiles[2].deployment.dtype == "bfloat16"
    on_gpu, _ = offered_profiles(StreamConfig(sampler="skip-null"), Deployment(device="cuda", dtype="bfloat16"), heads_profiled=False)
    assert [(p.name, p.note) for p in on_gpu] == [("exact", ""), ("fp8", ""), ("fp8-attention", "")]


def test_shares_of_the_cache_are_profiles_of_weights_whose_heads_were_profiled() -> None:
    profiles, absent = offered_profiles(StreamConfig(), Deployment(), heads_profiled=True)
    assert [(p.name, p.deployment.kv_keep) for p in profiles][-2:] == [("kv-keep 0.667", 0.667), ("kv-keep 0.5", 0.5)] and absent == {}


def test_a_share_between_those_that_are_offered_has_the_smaller_ones() -> None:
    profiles, _ = offered_profiles(StreamConfig(), Deployment(kv_keep=0.8), heads_profiled=True)
    assert [p.deployment.kv_keep for p in profiles if p.name.startswith("kv-keep")] == [0.667, 0.5]


def test_ssim_is_its_formula() -> None:
    """One window of 11 x 11: weighted means, variances and covariance by hand."""
    x, y = np.random.default_rng(0).integers(0, 256, (2, 11, 11)).astype(float)
    weights = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    weights /= weights.sum()
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy, xy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum(), (weights * (x - mx) * (y - my)).sum()
    by_hand = (2 * mx * my + C1) * (2 * xy + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))
    gray = [torch.from_numpy(image).to(torch.uint8)[None, :, :, None].expand(1, 11, 11, 3) for image in (x, y)]
    assert ssim(*gray).item() == pytest.approx(by_hand, abs=1e-4)


def test_distances_of_frames() -> None:
    exact = torch.randint(0, 200, (40, 24, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same = compare_frames(exact, exact)
    assert psnr(same.mse_T.mean().item()) is None and same.ssim_T.min() == pytest.approx(1.0)
    lit = exact.clone()
    lit[35] += 10  # one frame of forty, 10 gray levels brighter
    found = compare_frames(lit, exact)
    assert found.mse_T.max() == 100 and int(found.mse_T.argmax()) == int(found.ssim_T.argmin()) == 35
    assert psnr(found.mse_T.mean().item()) == pytest.approx(10 * math.log10(255**2 / 2.5))
    with pytest.raises(BadInput, match="39x24x32 and 40x24x32"):
        compare_frames(exact[:39], exact)


def test_the_table_says_what_is_missing() -> None:
    rows = [
        ProfileRow("exact", 1, 50, ssim=1.0, ssim_worst_frame=1.0, motion_ratio=1.0, speed_ratio=1.0, fps=30.0),
        ProfileRow("fp8", 1, 50, 45.66, 43.6, 0.99, 0.98, 0.98, 0, 1.01, 0.4, 12.0, "emulated"), ProfileRow("KV", missing="not offered"),
    ]  # fmt: skip
    lines = to_markdown(ProfileReport("short", {"seed": 1}, {"torch": "2"}, 0.1, rows)).splitlines()
    assert "| exact | no difference | no difference | 1.0000 | 1.0000 | not available | not available | 1.000 | 1.00 |" in lines
    assert "| fp8 (1) | 45.7 | 43.6 | 0.9900 | 0.9800 | 0.980 | 0 | 1.010 | 0.40 |" in lines and "(1) Emulated." in lines
    assert "| KV | not offered | | | | | | | |" in lines


@pytest.mark.long
def test_profiles_of_a_model_are_published(small_set: BenchmarkSet, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["genbench", "profiles", "--set", str(small_set.folder), "--weights", str(small_model), "--threads", "1", "--limit", "1"]
    assert cli.main([*command, "--seconds", "3", "-o", str(tmp_path / "out")]) == 0
    assert "| exact | no difference |" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "out/profiles.json").read_text())["rows"]}
    assert [rows[name]["frames"] for name in ("exact", *config.SAMPLERS[1:], *config.DTYPES[1:])] == [75] * 5
    assert rows["exact"]["psnr"] is None and 20 < rows["fp8"]["psnr"] < rows["bfloat16"]["psnr"]
    assert all(row["missing"] or row["speed_ratio"] > 0 for row in rows.values())
    assert "everface profile kv" in rows["kv-keep"]["missing"]
    assert cli.main([*command, "--seconds", "3", "-o", str(tmp_path / "out")]) == 0  # goes on: nothing is made again
    capsys.readouterr()
    (tmp_path / "out/fp8/clips/s-0.rgb").unlink()
    assert cli.main([*command, "--seconds", "3", "-o", str(tmp_path / "out")]) == 2 and "run again" in capsys.readouterr().err
