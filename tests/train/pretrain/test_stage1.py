"""A miniature stage 1, stopped and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tests.train.miniature import SMALL_DIT

from everface.networks.transformer.dit import DiT
from everface.train.pretrain.plans import Stage1Plan
from everface.train.pretrain.stage1 import train_stage1


def test_stage1_lowers_the_loss_resumes_and_leaves_a_model(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    clips = {"latents": torch.randn(80, 16, 18, 8, 8, generator=g).half(), "features": torch.randn(80, 1, 12, 69, generator=g).half()}
    (tmp_path / "clips").mkdir()
    save_file(clips, tmp_path / "clips" / "00000.safetensors")
    plan = Stage1Plan(iterations=12, warmup_steps=3, curriculum=((0.0, 2, 2), (0.5, 5, 1)))
    train_stage1(tmp_path / "run", tmp_path / "clips", plan, SMALL_DIT)
    path = train_stage1(tmp_path / "run", tmp_path / "clips", replace(plan, iterations=24), SMALL_DIT)
    DiT(SMALL_DIT).load_state_dict(load_file(path), strict=True)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["block_frames"] == SMALL_DIT.block_frames
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [12, 24] and rows[1]["loss"] < rows[0]["loss"]
