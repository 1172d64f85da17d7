"""Clips of drawn characters: the mouth follows the voice alone, all kinds of audio occur, seeds repeat."""

from __future__ import annotations

import torch

from everface.core.config import SAMPLE_RATE
from everface.networks.audio.features import LogMel
from everface.train.data import drawn
from everface.train.synthetic.motion import NEUTRAL_WIDTH, mouth_targets
from everface.train.synthetic.parameters import ANIMATION


def hum(seconds: float = 6) -> torch.Tensor:
    time_s = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return 0.12 * torch.sin(2 * torch.pi * 220 * time_s) * (torch.sin(2 * torch.pi * 2 * time_s) > 0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_background_is_in_the_features_and_does_not_move_the_face(monkeypatch):
    front_end = LogMel()
    monkeypatch.setattr(drawn, "SILENT_SHARE", 0.0)
    made = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(drawn, "BACKGROUND_SHARE", share)
        made.append(drawn.make_clip([hum()], front_end, seeded(3)))
    (rgb, alone, anim), (rgb_mixed, mixed, _) = made
    assert torch.equal(rgb, rgb_mixed) and anim.shape == (64, len(ANIMATION))
    assert (alone - mixed).abs().mean() > 0.1


def test_a_still_head_stays_where_it_is():
    front_end = LogMel()
    _, _, anim = drawn.make_clip([hum()], front_end, seeded(3))
    rgb, _, held = drawn.make_clip([hum()], front_end, seeded(3), still_head=True)
    assert anim[:, -3:].abs().amax(0).min() > 0.005 and not held[:, -3:].any() and torch.equal(held[:, :-3], anim[:, :-3])
    corner = rgb[:, 5:, :8, :8]  # of the background, which is drawn behind the head
    assert torch.equal(corner, corner[:, :1].expand_as(corner))


def test_music_or_noise_alone_leaves_the_mouth_shut(monkeypatch):
    monkeypatch.setattr(drawn, "SILENT_SHARE", 1.0)
    monkeypatch.setattr(drawn, "BACKGROUND_SHARE", 1.0)
    for seed in range(6):
        voice_S, mixed_S = drawn.draw_audio([hum()], 44_000, seeded(seed))
        open_T, wide_T = mouth_targets(voice_S)
        assert open_T.max() == 0 and (wide_T - NEUTRAL_WIDTH).abs().max() < 1e-6
        assert mixed_S.square().mean() > 1e-6


def test_clips_have_all_kinds_of_audio_and_repeat_with_the_seed():
    pairs = [drawn.draw_audio([hum(2), hum(6)], 44_000, seeded(n)) for n in range(300)]
    with_background = sum(not torch.equal(voice, mixed) for voice, mixed in pairs) / 300
    silent = sum(not voice.any() for voice, _ in pairs) / 300
    assert abs(with_background - drawn.BACKGROUND_SHARE) < 0.1 and 0.02 < silent < 0.12
    again = drawn.draw_audio([hum(2), hum(6)], 44_000, seeded(17))
    assert all(torch.equal(a, b) for a, b in zip(pairs[17], again))
