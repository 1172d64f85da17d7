"""Each measure reacts to the fault it is meant for."""

from __future__ import annotations

import math

import pytest
import torch

from everface.train.engine.statistics import correlation
from everface.train.evaluate import metrics


def wave_T(frames: int = 200) -> torch.Tensor:
    time_s = torch.arange(frames) / 25
    return 0.5 + 0.3 * torch.sin(7 * time_s) + 0.2 * torch.sin(17 * time_s + 1)


def test_lag_and_correlation():
    truth_T = wave_T()
    assert correlation(truth_T, 3 * truth_T + 1) == pytest.approx(1)
    assert correlation(torch.full((200,), 0.4), truth_T) == 0
    assert metrics.lag(truth_T, truth_T) == 0
    assert metrics.lag(truth_T.roll(3)[5:], truth_T[5:]) == 3
    assert metrics.lag(truth_T.roll(-2)[:-5], truth_T[:-5]) == -2
    assert metrics.amplitude_ratio(0.5 * truth_T, truth_T) == pytest.approx(0.5)


def test_blur_costs_sharpness(clip):
    blurred = torch.nn.functional.avg_pool2d(clip, 3, 1, 1)
    assert metrics.sharpness(blurred) < 0.6 * metrics.sharpness(clip)


def test_seams_show_at_block_and_latent_edges(clip):
    block, latent = metrics.edge_flicker(clip)
    assert 0.5 < block < 1.8 and 0.5 < latent < 1.8
    index = torch.arange(len(clip))
    seamed = clip + 0.03 * (index // 12 % 2)[:, None, None, None]
    assert metrics.edge_flicker(seamed)[0] > block + 1 and metrics.edge_flicker(seamed)[1] == pytest.approx(latent, rel=1e-3)
    seamed = clip + 0.03 * (index // 4 % 2)[:, None, None, None]
    assert metrics.edge_flicker(seamed)[1] > latent + 1
    still = clip[:1].expand(48, -1, -1, -1)
    assert metrics.edge_flicker(still) == (1.0, 1.0) and metrics.motion_energy(still) == 0
    jumps = still + 0.1 * (torch.arange(48) // 12 % 2)[:, None, None, None]
    assert metrics.edge_flicker(jumps) == (math.inf, 1.0)


def test_deviation_tells_less_motion_from_other_motion(clip):
    assert metrics.deviation(clip, clip) == pytest.approx((1, 1))
    mean = clip.mean(0, keepdim=True)
    assert metrics.deviation(mean + 0.5 * (clip - mean) + 0.2, clip) == pytest.approx((1, 0.5), abs=1e-4)
    agreement, gain = metrics.deviation(clip.flip(0), clip)
    assert agreement < 0.5 and gain < 0.5
    assert metrics.deviation(mean.expand_as(clip), clip) == pytest.approx((0, 0), abs=1e-4)


def test_psnr_and_frames_round_trip(clip):
    assert metrics.psnr(clip, clip) == 100
    assert metrics.psnr(clip, clip + 0.2) == pytest.approx(20, abs=1e-3)
    assert metrics.psnr(metrics.as_rgb(metrics.as_frames(clip)), clip) > 50


def test_blinks_are_counted_once():
    blink_T = torch.zeros(250)
    blink_T[40:47], blink_T[100:107], blink_T[103] = 1, 1, 0.5
    assert metrics.count_blinks(blink_T) == 2
