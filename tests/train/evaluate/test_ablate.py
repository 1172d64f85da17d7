"""The ablation's table at miniature size: every row there is, what it may not claim, and students of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.avatar.conftest import SMALL, small_model  # noqa: F401
from tests.train.data.test_generate import vae_run  # noqa: F401

from everface.core.config import Deployment, ModelConfig
from everface.core.errors import BadInput
from everface.model.dit import DiT
from everface.train.bundle import bundle
from everface.train.evaluate import ablate, metrics
from everface.train.evaluate.lip_reader import Reader
from everface.train.evaluate.run import judge_parts

NUMBERS = [*ablate.COLUMNS, *(f"drift_{key}" for key in ablate.DRIFTS)]


@pytest.fixture
def reader() -> Reader:
    torch.manual_seed(0)
    return Reader().eval()


def sounds(seconds: float = 2.9) -> list[torch.Tensor]:
    return [0.2 * torch.randn(int(seconds * 16_000), generator=torch.Generator().manual_seed(n)) for n in range(1)]


def student(folder: Path, like: Path, block_frames: int, **plan: object) -> Path:
    """A model folder as `train bundle` leaves it."""
    folder.mkdir()
    torch.manual_seed(6)
    dit = replace(SMALL.dit, block_frames=block_frames)
    save_file({k: v.contiguous() for k, v in DiT(dit).state_dict().items()}, folder / "dit.safetensors")
    (folder / "config.json").write_text(json.dumps(replace(SMALL, dit=dit).to_dict()))
    (folder / "vae.safetensors").write_bytes((like / "vae.safetensors").read_bytes())
    (folder / "plan.json").write_text(json.dumps({"history": "own", "block_frames": block_frames} | plan))
    return folder


@pytest.mark.slow
def test_every_row_is_judged_or_says_why_not(
    small_model: Path, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(ablate, "VARIANTS", [v for v in ablate.VARIANTS if v.name not in ("no rolling RoPE", "3 steps", "fixed-noise cache", "block 4")])
    monkeypatch.setattr(metrics, "fit_pose", partial(metrics.fit_pose, rounds=((32, 3),)))
    students = {"block 1": student(tmp_path / "one", small_model, 1), "clean cache": student(tmp_path / "clean", small_model, 3, history="clean")}
    report = ablate.ablate(small_model, students, reader, sounds(), tmp_path / "out", Deployment(), window_s=0.96)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [v.name for v in ablate.VARIANTS]
    assert {name for name, row in rows.items() if "open_corr" not in row} == {"block 2"} and rows["block 2"]["note"] == "not trained"
    for name, row in rows.items():
        if name != "block 2":
            assert set(NUMBERS) <= row.keys()
    assert not any(rows[name]["note"] for name in ("default", "skip-null", "block 1", "clean cache"))
    assert rows["2 steps"]["note"] == "weights not trained for it (steps=4)"
    apart = {name: row["fit_psnr"] for name, row in rows.items() if "fit_psnr" in row}
    assert len({round(v, 9) for v in apart.values()}) == len(apart), "no row may be another's copy"
    written = json.loads((tmp_path / "out" / "ablate.json").read_text())["rows"]
    assert {row["name"]: row["fit_psnr"] for row in written if "fit_psnr" in row} == apart
    lines = (tmp_path / "out" / "ablate.md").read_text().splitlines()
    assert len([line for line in lines if line.count("|") == len(NUMBERS) + 3]) == len(rows) + 2


def test_rows_can_be_chosen(small_model: Path, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(metrics, "fit_pose", partial(metrics.fit_pose, rounds=((32, 3),)))
    report = ablate.ablate(small_model, {}, reader, sounds(), tmp_path, Deployment(), window_s=0.96, only=["skip-null", "default"])
    assert [row["name"] for row in report["rows"]] == ["default", "skip-null"]


def test_a_bundle_carries_its_plan(vae_run: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    run.mkdir()
    save_file({"head.modulation": torch.zeros(3)}, run / "dit.safetensors")
    (run / "plan.json").write_text(json.dumps({"history": "clean", "block_frames": 2, "noise_correlation": 0.8}))
    out = bundle([vae_run], run, tmp_path / "model")
    config = ModelConfig.read(out / "config.json")
    assert (config.dit.block_frames, config.noise_correlation) == (2, 0.8) and ablate.trained_with(out)["history"] == "clean"


def test_a_clean_cache_that_nobody_trained_for_says_so(small_model: Path) -> None:  # noqa: F811
    clean = next(v for v in ablate.VARIANTS if v.name == "clean cache")
    studio = ablate.Studio(small_model, Deployment())
    assert "never trained with t = 0" in ablate.caveat(clean, studio)
    fixed = next(v for v in ablate.VARIANTS if v.name == "fixed-noise cache")
    assert ablate.caveat(fixed, studio) == "weights not trained for it (history=own, history_sigma=0.0)"


def test_a_student_for_another_row_is_refused(small_model: Path, tmp_path: Path, reader: Reader) -> None:  # noqa: F811
    with pytest.raises(BadInput, match="block 2"):
        ablate.ablate(small_model, {"block three": small_model}, reader, sounds(), tmp_path, Deployment())
    with pytest.raises(BadInput, match="no row is called 'clean'"):
        judge_parts(None, [], tmp_path, tmp_path / "no speech yet", 1, 20, Deployment(), print, ["clean"])
    with pytest.raises(BadInput, match="two windows"):
        ablate.judge_variant(ablate.VARIANTS[0], ablate.Studio(small_model, Deployment()), reader, sounds(), 2.0)
