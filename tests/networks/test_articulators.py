"""The network that reads the mouth from audio: a window gives what the whole does, and a frame depends on its own window only."""

from __future__ import annotations

import torch

from everface.networks.audio.articulators import AHEAD_FRAMES, PAST_FRAMES, ArticulatorNet, apply_loudness, jaw_gain
from everface.networks.motion import ARTICULATORS


def test_windows_give_what_the_whole_gives() -> None:
    torch.manual_seed(0)
    net, features_NCT = ArticulatorNet(20, 16), torch.randn(1, 20, PAST_FRAMES + 24 + AHEAD_FRAMES)
    whole_NAT = net(features_NCT)
    assert whole_NAT.shape == (1, len(ARTICULATORS), 24) and 0 < whole_NAT.min() < whole_NAT.max() < 1
    halves = [net(features_NCT[..., begin : begin + PAST_FRAMES + 12 + AHEAD_FRAMES]) for begin in (0, 12)]
    assert torch.allclose(torch.cat(halves, 2), whole_NAT, atol=1e-6)


def test_a_frame_hears_two_ahead_and_as_far_back_as_is_said() -> None:
    torch.manual_seed(0)
    net, features_NCT = ArticulatorNet(20, 16).double(), torch.randn(1, 20, 2 * PAST_FRAMES + 9).double()
    before = net(features_NCT)
    features_NCT[..., PAST_FRAMES + 4] += 10
    changed_T = (net(features_NCT) != before).any(1)[0]
    shown = torch.arange(len(changed_T)) + PAST_FRAMES
    assert shown[changed_T].tolist() == list(range(PAST_FRAMES + 4 - AHEAD_FRAMES, 2 * PAST_FRAMES + 5))


def test_the_jaw_opens_by_the_last_120_ms() -> None:
    pcm_S = torch.cat([torch.zeros(640 * 5), 10 ** (-29.5 / 20) * torch.ones(640 * 10), torch.ones(640 * 5)])
    gain_T = jaw_gain(pcm_S, 0, 20)
    assert (gain_T[:5] == 0.45).all() and (gain_T[17:] == 1.2).all()
    assert torch.allclose(gain_T[7:15], torch.full((8,), 0.45 + 0.75 / 2), atol=1e-4)  # -29.5 dB is in the middle
    assert gain_T[4] < gain_T[5] < gain_T[6] < gain_T[7] and gain_T[15] > gain_T[14]
    assert torch.allclose(jaw_gain(pcm_S[640:], 6, 5), gain_T[7:12])
    medium_AT = torch.rand(6, 20)
    spoken_AT = apply_loudness(medium_AT, gain_T)
    assert torch.equal(spoken_AT[1:], medium_AT[1:]) and torch.allclose(spoken_AT[0], (medium_AT[0] * gain_T).clamp(max=1))
