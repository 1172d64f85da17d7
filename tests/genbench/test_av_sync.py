"""Sync measures find audio that was moved, with the right sign."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.genbench.conftest import Draw, late_audio

from everface.genbench.metrics.av_sync import AVSync
from everface.genbench.metrics.lips import LipTruth
from everface.genbench.metrics.measurement import NotAvailable


@pytest.mark.parametrize("late", [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5])
def test_moved_audio_is_found_with_the_right_sign(draw: Draw, late: int) -> None:
    moved = late_audio(draw(0), late)
    assert AVSync().measure(moved)["av_offset"] == -late  # late audio is early video
    found = LipTruth().measure(moved)
    assert found["lip_lag"] == -late and found["lip_corr"] > 0.95


def test_audio_in_sync_is_more_confident_than_other_audio(draw: Draw) -> None:
    window = draw(1)
    right = AVSync().measure(window)
    wrong = AVSync().measure(replace(window, pcm_S=window.pcm_S.flip(0)))
    assert right["av_confidence"] > 2 * wrong["av_confidence"] and right["av_distance"] < wrong["av_distance"]


def test_a_mouth_that_stands_still_has_no_correlation(draw: Draw) -> None:
    window = draw(0)
    still = replace(window, frames_THW3=window.frames_THW3[:1].expand(len(window.frames_THW3), -1, -1, -1))
    assert LipTruth().measure(still) == {"lip_corr": 0.0, "lip_amplitude": 0.0}
    assert AVSync().measure(still)["av_confidence"] < 0.1


def test_the_shipped_reader_is_trusted_on_true_video(draw: Draw) -> None:
    for seed in range(3):
        found = LipTruth().measure(draw(seed))
        assert found["lip_corr"] >= 0.97 and found["lip_lag"] == 0 and 0.9 < found["lip_amplitude"] < 1.1


def test_a_mouth_that_opens_half_as_far_is_seen(draw: Draw) -> None:
    """Each frame is brought half way to the closed mouth of the reference image."""
    window = draw(0)
    frames = window.frames_THW3.float()
    weak = replace(window, frames_THW3=(0.5 * frames + 0.5 * window.reference_HW3.float()).to(torch.uint8))
    full, half = LipTruth().measure(window)["lip_amplitude"], LipTruth().measure(weak)["lip_amplitude"]
    assert half < 0.8 * full


def test_what_is_not_known_gives_no_number(draw: Draw) -> None:
    with pytest.raises(NotAvailable, match="only drawn characters"):
        LipTruth().measure(replace(draw(0), truth=""))
    with pytest.raises(NotAvailable, match='add "face"'):
        AVSync().measure(replace(draw(0), face=None))
    with pytest.raises(NotAvailable, match="too few"):
        AVSync().measure(replace(draw(0), frames_THW3=draw(0).frames_THW3[:20]))
