"""The ablation at miniature size: every row, what it may not claim, and students of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.small_model import SMALL

from everface.core.config import Deployment
from everface.core.errors import BadInput
from everface.networks.transformer.dit import DiT
from everface.train.evaluate import ablate
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.evaluate.run import run_ablation

NUMBERS = [*ablate.COLUMNS, *(f"drift_{key}" for key in ablate.DRIFTS)]


def audio(seconds: float = 2.9) -> list[torch.Tensor]:
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
def test_every_row_is_measured_or_says_why_not(
    small_model: Path, tmp_path: Path, untrained_reader: LipReader, monkeypatch: pytest.MonkeyPatch, fast_pose_fit: None
) -> None:  # fmt: skip
    monkeypatch.setattr(ablate, "ABLATIONS", [v for v in ablate.ABLATIONS if v.name not in ("no rolling RoPE", "3 steps", "fixed-noise cache", "block 4")])
    students = {"block 1": student(tmp_path / "one", small_model, 1), "clean cache": student(tmp_path / "clean", small_model, 3, history="clean")}
    report = ablate.ablate(small_model, students, untrained_reader, audio(), tmp_path / "out", Deployment(), window_s=0.96)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [v.name for v in ablate.ABLATIONS]
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


def test_rows_can_be_chosen(small_model: Path, tmp_path: Path, untrained_reader: LipReader, fast_pose_fit: None) -> None:
    report = ablate.ablate(small_model, {}, untrained_reader, audio(), tmp_path, Deployment(), window_s=0.96, only=["skip-null", "default"])
    assert [row["name"] for row in report["rows"]] == ["default", "skip-null"]


def test_a_clean_cache_that_nobody_trained_for_says_so(small_model: Path) -> None:
    clean = next(v for v in ablate.ABLATIONS if v.name == "clean cache")
    model = OfflineModel(small_model, Deployment())
    assert "never trained with t = 0" in ablate.caveat(clean, model)
    fixed = next(v for v in ablate.ABLATIONS if v.name == "fixed-noise cache")
    assert ablate.caveat(fixed, model) == "weights not trained for it (history=own, history_sigma=0.0)"


def test_a_student_for_another_row_is_refused(small_model: Path, tmp_path: Path, untrained_reader: LipReader) -> None:
    with pytest.raises(BadInput, match="block 2"):
        ablate.ablate(small_model, {"block three": small_model}, untrained_reader, audio(), tmp_path, Deployment())
    with pytest.raises(BadInput, match="there is no row 'clean'"):
        run_ablation(None, [], tmp_path, tmp_path / "no speech yet", 1, 20, Deployment(), print, ["clean"])
    with pytest.raises(BadInput, match="two windows"):
        ablate.measure_ablation(ablate.ABLATIONS[0], OfflineModel(small_model, Deployment()), untrained_reader, audio(), 2.0)
