"""A miniature stage 1, stopped and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.miniature import SMALL_DIT, write_clips

from everface.networks.transformer.dit import DiT
from everface.train.data.clips import ONE_BLOCK, Clips
from everface.train.pretrain import flow_matching, stage1
from everface.train.pretrain.plans import Stage1Plan
from everface.train.pretrain.stage1 import train_stage1
from everface.train.pretrain.windows import TrainingWindow


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


def test_batches_larger_than_the_set_no_warm_up_and_nothing_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_matching, "train", partial(flow_matching.train, measure_every=25))
    plan = Stage1Plan(iterations=25, warmup_steps=0, held_out=0, curriculum=((0.0, 1, 100),))
    path = train_stage1(tmp_path / "run", write_clips(tmp_path / "clips"), plan, SMALL_DIT)
    assert all(t.isfinite().all() for t in load_file(path).values())


def test_a_share_of_the_batches_is_of_a_smaller_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = write_clips(tmp_path / "clips")
    held = load_file(clips / "00000.safetensors")
    (clips / "64").mkdir()
    save_file(held | {"latents": held["latents"][..., :4, :4].contiguous()}, clips / "64" / "00000.safetensors")
    sizes, drawn = list[int](), stage1.draw_window

    def draw(some: Clips, *args: Any) -> TrainingWindow:
        sizes.append(some.latents_N16Thw.shape[-1])
        return drawn(some, *args)

    monkeypatch.setattr(stage1, "draw_window", draw)
    plan = Stage1Plan(iterations=8, warmup_steps=1, held_out=4, curriculum=((0.0, 2, 2),), smaller_share=0.5, mouth_weight=2.0)
    path = train_stage1(tmp_path / "run", clips, plan, SMALL_DIT)
    assert {4, 8} == set(sizes) and all(t.isfinite().all() for t in load_file(path).values())
    trained = train_stage1(tmp_path / "alone", write_clips(tmp_path / "one size"), replace(plan, iterations=1), SMALL_DIT)
    shares = [json.loads((run.parent / "plan.json").read_text())["smaller_share"] for run in (path, trained)]
    assert shares == [0.5, 0.0]  # a bundle claims only what was trained
    sizes.clear()
    train_stage1(tmp_path / "other", clips, replace(plan, smaller_share=0.0), SMALL_DIT)
    assert set(sizes) == {8}


def test_a_share_of_the_batches_is_of_clips_of_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many blocks as the others: twice as many clips of one block, where the others have two."""
    clips = write_clips(tmp_path / "clips")
    held = load_file(clips / "00000.safetensors")
    (clips / ONE_BLOCK).mkdir()
    save_file({"latents": held["latents"][:, :, :5].contiguous(), "features": held["features"][..., :17].contiguous()}, clips / ONE_BLOCK / "00000.safetensors")
    drawn, draw = list[tuple[int, int, int]](), stage1.draw_window

    def noted(some: Clips, batch: int, blocks: int, *args: Any) -> TrainingWindow:
        drawn.append((some.latents_N16Thw.shape[2], batch, blocks))
        return draw(some, batch, blocks, *args)

    monkeypatch.setattr(stage1, "draw_window", noted)
    plan = Stage1Plan(iterations=8, warmup_steps=1, held_out=4, curriculum=((0.0, 2, 2),), one_block_share=0.5)
    path = train_stage1(tmp_path / "run", clips, plan, SMALL_DIT)
    assert {(5, 4, 1), (held["latents"].shape[2], 2, 2)} == set(drawn) and all(t.isfinite().all() for t in load_file(path).values())


def test_steps_of_its_own_are_part_of_a_run(tmp_path: Path) -> None:
    """The loss is another, as the model's own steps lead elsewhere than noised truth, and gradients are finite."""
    clips, losses = write_clips(tmp_path / "clips"), []
    for share in (0.0, 1.0):
        plan = Stage1Plan(iterations=2, warmup_steps=1, held_out=4, curriculum=((0.0, 2, 4),), own_share=share, sampler_levels=1.0, shared_level=1.0)
        path = train_stage1(tmp_path / f"run{share}", clips, plan, SMALL_DIT)
        assert all(t.isfinite().all() for t in load_file(path).values())
        losses.append(json.loads((path.parent / "log.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[0] != losses[1]
