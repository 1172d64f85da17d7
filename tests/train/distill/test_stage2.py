"""Iterations of stage 2: what each updates, and a run that repeats and resumes to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.train.miniature import SMALL_DIT, STAGE2, small_dit

from everface.train.data.clips import read_clips
from everface.train.distill.activations import checkpointed
from everface.train.distill.stage2 import Distiller, train_stage2
from everface.train.engine.ranks import Ranks
from everface.train.pretrain.dit_files import new_dit


def test_the_fake_score_learns_the_students_samples(start: tuple[Path, Path, Path]) -> None:
    """A new student turns noise into nearly that noise. Near sigma 0.9 the loss of an untrained score is 2, of a trained one 1.2."""
    plan = replace(STAGE2, ratio=1000, fake_lr=1e-2, truth_start=0.0, reward=0.0, min_sigma=0.9, max_sigma=0.9)
    distiller = Distiller(new_dit(SMALL_DIT, 0), new_dit(SMALL_DIT, 1), read_clips(start[0]), plan, Ranks())
    before = {n: p.clone() for n, p in distiller.student.named_parameters()}
    losses = [distiller.iterate(i, 0.0)["fake"] for i in range(30)]
    assert sum(losses[:3]) / 3 > 1.9 and sum(losses[-3:]) / 3 < 1.7
    assert all(torch.equal(before[n], p) for n, p in distiller.student.named_parameters())


def test_iterations_follow_the_plan_and_every_part_moves(start: tuple[Path, Path, Path]) -> None:
    clips = start[0]
    distiller = Distiller(small_dit(0), small_dit(1), read_clips(clips), STAGE2, Ranks())
    teacher = {n: p.clone() for n, p in distiller.real.named_parameters()}
    student = {n: p.clone() for n, p in distiller.student.named_parameters()}
    first = distiller.iterate(0, 0.0)
    assert set(first) == {"fake"} and all(torch.equal(student[n], p) for n, p in distiller.student.named_parameters())
    second = distiller.iterate(1, 0.0)
    assert second["dmd"] > 0 and second["norm"] > 0
    assert sum(not torch.equal(student[n], p) for n, p in distiller.student.named_parameters()) > 50
    assert all(torch.equal(teacher[n], p) for n, p in distiller.real.named_parameters())


def test_four_iterations_are_two_and_two_more_to_the_bit(start: tuple[Path, Path, Path], tmp_path: Path) -> None:
    straight = load_file(train_stage2(tmp_path / "a", *start, STAGE2, SMALL_DIT))
    train_stage2(tmp_path / "b", *start, replace(STAGE2, iterations=2, decay_from=1.0), SMALL_DIT)
    resumed = load_file(train_stage2(tmp_path / "b", *start, STAGE2, SMALL_DIT))
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[n], resumed[n]) for n in straight)
    began = load_file(start[1])
    assert sum(not torch.equal(straight[n], began[n]) for n in straight) > 50
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4 and {"dmd", "fake", "norm", "reward"} <= rows[-1].keys()
    assert not list(tmp_path.glob("**/*.pt")) and not list(tmp_path.glob("**/*.pkl"))


def test_checkpointed_replay_has_the_same_gradient(start: tuple[Path, Path, Path]) -> None:
    grads = []
    for recompute in (False, True):
        plan = replace(STAGE2, checkpoint_activations=recompute, ratio=1)
        distiller = Distiller(small_dit(0), small_dit(1), read_clips(start[0]), plan, Ranks())
        distiller.iterate(0, 0.0)
        grads.append({n: p.grad for n, p in distiller.student.named_parameters() if p.grad is not None})
        assert not any("stream" in vars(block) for block in distiller.student.transformer_blocks())
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 50
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])
    with checkpointed(distiller.student):
        assert all("stream" in vars(block) for block in distiller.student.transformer_blocks())
