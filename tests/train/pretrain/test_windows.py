"""How windows are drawn, in position, noise and alignment, and what the fields for ablation change."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import torch

from everface.networks.transformer.rope import SINK_TIME, sink_time
from everface.networks.transformer.schedule import sigmas
from everface.train.data.clips import Clips
from everface.train.pretrain.noise import LEVEL_ODDS, draw_noise, draw_sigmas
from everface.train.pretrain.plans import Stage1Plan, TeacherPlan
from everface.train.pretrain.teacher import draw_teacher_window
from everface.train.pretrain.windows import TrainingWindow, draw_own, draw_window, noised_past


def test_clips_that_come_by_own_steps() -> None:
    """Only those at one level between noise and nearly nothing, the same in all blocks, and the plan's share of them."""
    levels, plan = sigmas(4), Stage1Plan(own_share=0.5)
    sigma = torch.tensor([[levels[1]] * 2, [levels[2]] * 2, [levels[0]] * 2, [levels[3]] * 2, [levels[1], levels[2]], [0.5, 0.5]])
    drawn = torch.stack([draw_own(sigma, random.Random(seed), plan) for seed in range(200)]).float().mean(0)
    assert drawn[2:].max() == 0 and drawn[:2].min() > 0.35 and drawn[:2].max() < 0.65
    assert draw_own(sigma, random.Random(0), Stage1Plan(own_share=1.0)).tolist() == [True, True, False, False, False, False]


def test_each_field_for_ablation_changes_its_part_of_a_window() -> None:
    """As it changes the stream, and nothing else."""
    g = torch.Generator().manual_seed(0)
    clips = Clips(torch.randn(4, 16, 20, 8, 8, generator=g).half(), torch.randn(4, 1, 12, 77, generator=g).half())

    def drawn(seed: int, **fields: Any) -> TrainingWindow:
        return draw_window(clips, 2, 4, 3, random.Random(seed), "cpu", Stage1Plan(start_share=0.0, **fields))

    def differing(seed: int, **fields: Any) -> set[str]:
        plain, changed = asdict(drawn(seed)), asdict(drawn(seed, **fields))
        return {k for k in plain if not (torch.equal(plain[k], changed[k]) if isinstance(plain[k], torch.Tensor) else plain[k] == changed[k])}

    window = drawn(0, rolling=False)
    assert {sink_time(window.first_frame + 3 * b, d) for b, d in enumerate(window.sink_distances)} == {SINK_TIME}
    assert differing(0, rolling=False) == {"sink_distances"}
    clean, fixed = drawn(0, history="clean"), drawn(0, history="fixed", history_sigma=0.557)
    assert clean.past_B16Fhw is not None and fixed.past_B16Fhw is not None
    assert torch.equal(clean.past_B16Fhw, clean.x0_B16Fhw) and clean.past_sigma == 0.0
    noise = (fixed.past_B16Fhw - 0.443 * fixed.x0_B16Fhw) / 0.557
    assert fixed.past_sigma == 0.557 and abs(noise.std() - 1) < 0.02 and abs((noise * fixed.x0_B16Fhw).mean()) < 0.02
    references = [drawn(seed, refresh=refresh).reference_B16_1hw for refresh in (True, False) for seed in range(40)]
    still = clips.latents_N16Thw[:, :, :1].float()
    moving = [not any(torch.equal(r, s) for r in rows for s in still) for rows in references]
    assert sum(moving[:40]) > 10 and not any(moving[40:])
    taught = [draw_teacher_window(TeacherPlan(refresh=False), 3, clips, 2, 4, random.Random(seed), "cpu").reference_B16_1hw for seed in range(40)]
    assert all(any(torch.equal(r, s) for s in still) for rows in taught for r in rows)
    assert differing(0, own_share=1.0) == {"own_B", "levels"}
    for steps in (2, 3):
        sigma = draw_sigmas(400, 5, random.Random(0), Stage1Plan(steps=steps, sampler_levels=1.0))
        assert set(sigma.unique().tolist()) == set(torch.tensor(sigmas(steps)[:-1]).tolist())
        assert 0.01 < (sigma == sigma.min()).float().mean() < 0.08


def test_sigmas_are_mostly_the_samplers() -> None:
    sigma = draw_sigmas(400, 5, random.Random(0), Stage1Plan())
    known = torch.tensor([1.0, 0.8576923, 0.6021505, 0.0089286])
    on_level = (sigma[..., None] - known).abs().min(-1).values < 1e-6
    assert 0.78 < on_level.float().mean() < 0.92
    assert (sigma == sigma[:, :1]).all(1).float().mean() > 0.45
    assert sigma.min() >= 0 and sigma.max() <= 1


def test_levels_are_spread_evenly_over_a_batch() -> None:
    drawn = [draw_sigmas(8, 2, random.Random(seed), Stage1Plan(sampler_levels=1.0, shared_level=1.0)) for seed in range(20)]
    for sigma in drawn:
        counts = [(sigma[:, 0] == level).sum().item() for level in torch.tensor(sigmas(4)[:-1])]
        assert all(abs(count - 8 * share) <= 1 for count, share in zip(counts, LEVEL_ODDS, strict=True)), counts
    assert len({sigma[0, 0].item() for sigma in drawn}) > 1  # in no fixed order


def test_the_papers_levels_are_independent_and_anywhere() -> None:
    sigma = draw_sigmas(400, 7, random.Random(0), Stage1Plan(sampler_levels=0.0, shared_level=0.0))
    assert (sigma == sigma[:, :1]).all(1).sum() == 0
    assert abs(torch.corrcoef(sigma.T)[0, 1:]).max() < 0.15
    u = sigma / (3 - 2 * sigma)  # unshifted: uniform
    assert abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.005


def test_noise_that_changes_slowly_is_normal_in_every_frame() -> None:
    noise = draw_noise(torch.Size((4, 16, 9, 16, 16)), torch.Generator().manual_seed(0), 0.8)
    assert (noise.std(dim=(0, 1, 3, 4)) - 1).abs().max() < 0.03
    following = (noise[:, :, 1:] * noise[:, :, :-1]).mean(dim=(0, 1, 3, 4))
    assert (following - 0.8).abs().max() < 0.03


def test_the_scaffold_noises_every_motion_frame_on_its_own() -> None:
    past = torch.arange(1.0, 9.0)[None, None, :, None, None].expand(2, 16, 8, 12, 12)
    motion = noised_past(past, random.Random(0))
    assert motion.shape == (2, 16, 19, 12, 12)
    sigma = motion.std(dim=(1, 3, 4))  # of a flat image: only the noise
    assert sigma.min() < 0.25 and sigma.max() > 0.75 and (sigma[:, 1:] - sigma[:, :-1]).abs().min() > 1e-4
    clean = motion.mean(dim=(1, 3, 4)) / (1 - sigma)
    good = sigma < 0.5
    truth = torch.cat([torch.ones(12), torch.arange(2.0, 9.0)]).expand(2, -1)  # the first is repeated, the newest comes last
    assert (clean - truth)[good].abs().max() < 0.2
