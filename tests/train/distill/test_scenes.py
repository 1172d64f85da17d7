"""Scenes and courses of rollouts."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.train.miniature import STAGE2

from everface.train.data.clips import Clips
from everface.train.distill.scenes import Course, draw_course, draw_scene, shuffled


def test_ranks_take_different_scenes_and_the_plan_decides_what_they_are() -> None:
    g = torch.Generator().manual_seed(0)
    clips = Clips(torch.randn(10, 16, 18, 8, 8, generator=g), torch.randn(10, 1, 12, 69, generator=g))
    assert sorted(shuffled(1, 0, 10)) == list(range(10)) and shuffled(1, 0, 10) != shuffled(1, 1, 10)
    still = replace(STAGE2, perturb_reference=0.0)
    seen = [draw_scene(clips, still, Course(0, 3, 1), 3, 8, n, "cpu").reference_16_1hw for n in range(10)]
    assert sorted(float(r[0, 0, 0, 0]) for r in seen) == sorted(float(z[0, 0, 0, 0]) for z in clips.latents_N16Thw)
    late = [draw_scene(clips, replace(still, refresh=refresh), Course(37, 3, 1), 3, 8, n, "cpu").reference_16_1hw for refresh in (True, False) for n in range(10)]
    kept = [any(torch.equal(reference, image) for image in clips.latents_N16Thw[:, :, :1]) for reference in late]
    assert not all(kept[:10]) and all(kept[10:])  # without the refresh of the sink only the image is a reference
    other = draw_scene(clips, replace(STAGE2, perturb_reference=1.0), Course(0, 3, 1), 3, 8, 4, "cpu").reference_16_1hw
    assert not torch.equal(other, seen[4])
    courses = [draw_course(replace(STAGE2, steps=4, truth_start=0.5), i) for i in range(400)]
    assert {c.exit_step for c in courses} == {0, 1, 2} and all(c.start_step <= c.exit_step for c in courses)
    assert 0.25 < sum(c.start_step > 0 for c in courses) / 400 < 0.5
    assert 0.4 < sum(c.first_block == 0 for c in courses) / 400 < 0.6
