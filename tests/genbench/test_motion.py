"""Frozen faces, flicker, and another person."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.genbench.conftest import Draw

from everface.genbench.metrics.color_likeness import ColorLikeness
from everface.genbench.metrics.flicker import Flicker
from everface.genbench.metrics.motion import Motion


def test_a_frozen_face_has_no_motion(draw: Draw) -> None:
    window = draw(0)
    still = replace(window, frames_THW3=window.frames_THW3[:1].expand(50, -1, -1, -1))
    assert Motion().measure(still) == {"motion": 0.0, "expression_std": 0.0, "frozen": 1.0}
    moving = Motion().measure(window)
    assert moving["motion"] > 0.5 and moving["expression_std"] > 1 and moving["frozen"] < 0.1
    assert Flicker().measure(still) == {"t_flicker": 1.0}


def test_added_flicker_is_seen(draw: Draw) -> None:
    window = draw(0)
    lit = window.frames_THW3.float() + 8 * (torch.arange(len(window.frames_THW3)) % 2)[:, None, None, None]
    flickering = replace(window, frames_THW3=lit.clamp(0, 255).to(torch.uint8))
    clean, worse = Flicker().measure(window)["t_flicker"], Flicker().measure(flickering)["t_flicker"]
    assert clean - worse == pytest.approx(8 / 255, rel=0.4)


def test_a_seam_at_block_edges_is_seen(draw: Draw) -> None:
    window = draw(0)
    block = torch.arange(len(window.frames_THW3)) // 12 % 2
    seams = (window.frames_THW3.float() + 12 * block[:, None, None, None]).clamp(0, 255).to(torch.uint8)
    found = Flicker().measure(replace(window, frames_THW3=seams))
    assert found["block_flicker"] > 3 * Flicker().measure(window)["block_flicker"]
    late = replace(window, begin_s=100.0, frames_THW3=seams[:240])  # 2500 frames before it: edges are elsewhere
    assert Flicker().measure(late)["block_flicker"] < found["block_flicker"] / 2


def test_another_person_is_less_like_the_reference(draw: Draw) -> None:
    for seed in range(3):
        own = ColorLikeness().measure(draw(seed))["color_likeness"]
        other = ColorLikeness().measure(replace(draw(seed), frames_THW3=draw(seed + 1).frames_THW3))["color_likeness"]
        assert own > 0.8 and other < own - 0.1
