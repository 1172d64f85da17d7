"""Motion: the mouth follows audio by a causal rule, blinks come where phrases end, sway stays small."""

from __future__ import annotations

from itertools import pairwise

import torch
from tests.train.miniature import syllables

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.train.synthetic.motion import NEUTRAL_WIDTH, mouth_targets, sample_motion


def test_motion_is_gentle_and_seeded():
    open_T, wide_T = mouth_targets(syllables(40))
    anim_TA, again_TA = (sample_motion(open_T, wide_T, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(anim_TA, again_TA) and anim_TA.shape == (1000, 7)
    assert anim_TA[:, 4:6].abs().max() < 0.05 and anim_TA[:, 6].abs().max() < 0.06
    assert anim_TA[:, :4].min() >= 0 and anim_TA[:, :4].max() <= 1


def blink_starts(open_T: torch.Tensor, seed: int) -> list[int]:
    shut_T = sample_motion(open_T, open_T, torch.Generator().manual_seed(seed))[:, 2] > 0
    starts = [t for t in range(1, len(shut_T)) if shut_T[t] and not shut_T[t - 1]]
    for start in starts:
        assert start > len(shut_T) - 9 or 6 <= (~shut_T[start:]).nonzero()[0].item() <= 8
    return starts


def test_people_blink_where_a_phrase_ends_and_sometimes_elsewhere():
    open_T = torch.zeros(25 * 120)
    open_T.view(-1, 75)[:, :50] = 0.6  # two seconds of speech, one of silence, forty times
    ends = set(range(50, len(open_T), 75))
    starts = [start for seed in range(4) for start in blink_starts(open_T, seed)]
    assert 0.8 * 160 < sum(start in ends for start in starts) < 0.97 * 160
    assert len(starts) < 1.1 * 160
    silent = blink_starts(torch.zeros(25 * 120), 0)
    assert all(25 * 4 <= b - a <= 25 * 8.4 for a, b in pairwise(silent)) and 14 <= len(silent) <= 30
    chatter = blink_starts(torch.full((25 * 120,), 0.6), 0)
    assert 14 <= len(chatter) <= 30, "nobody holds the eyes open through a long speech"


def test_mouth_rule_is_causal_and_shut_in_silence():
    pcm_S = syllables(4)
    open_T, wide_T = mouth_targets(pcm_S)
    assert len(open_T) == len(wide_T) == 100 and open_T.std() > 0.1
    changed_S = pcm_S.clone()
    changed_S[50 * SAMPLES_PER_FRAME :] = 0
    open2_T, wide2_T = mouth_targets(changed_S)
    assert torch.equal(open_T[:50], open2_T[:50]) and torch.equal(wide_T[:50], wide2_T[:50])
    assert open2_T[70:].max() < 0.01 and (wide2_T[70:] - NEUTRAL_WIDTH).abs().max() < 0.01


def test_dark_audio_rounds_and_bright_audio_spreads_the_mouth():
    time_s = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    dark, bright = (mouth_targets(0.2 * torch.sin(2 * torch.pi * hertz * time_s))[1][-1] for hertz in (400, 2500))
    assert dark < 0.3 and bright > 0.7
