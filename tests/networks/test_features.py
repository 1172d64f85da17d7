"""The log-mel front end: right bands, causal, independent of how the audio is cut."""

from __future__ import annotations

import math

import pytest
import torch

from everface.core.errors import BadWeights
from everface.networks.audio.features import LogMel, mel_filters


def noise(frames: int, front_end: LogMel, seed: int = 0) -> torch.Tensor:
    return 0.06 * torch.randn(front_end.lookback_samples + 640 * frames, generator=torch.Generator().manual_seed(seed))


def test_against_a_plain_dft() -> None:
    front_end = LogMel(mels=24, hops=4)
    pcm_S = noise(2, front_end)
    got_HM = front_end.features(pcm_S, 2)[0].T.reshape(8, 24)
    n_W = torch.arange(512, dtype=torch.float64)
    hann_W = 0.5 - 0.5 * torch.cos(2 * math.pi * n_W / 512)
    dft_WF = torch.exp(-2j * math.pi * n_W[:, None] * torch.arange(257, dtype=torch.float64) / 512)
    for hop in range(8):
        window_W = pcm_S[160 * hop : 160 * hop + 512].double()  # ends at sample 160 (hop + 1) of the wanted frames
        power_F = ((window_W * hann_W).to(torch.complex128) @ dft_WF).abs().square() / hann_W.square().sum()
        want_M = (torch.log(power_F @ mel_filters(24, 257).double() + 1e-6) + 10.0) / 3.6
        torch.testing.assert_close(got_HM[hop].double(), want_M, atol=2e-5, rtol=0)


def test_pieces_equal_the_whole() -> None:
    front_end = LogMel()
    pcm_S = noise(250, front_end)
    whole_LCT = front_end.features(pcm_S, 250)
    assert whole_LCT.shape == (1, 160, 250) and front_end.channels == 160 and front_end.lookback_samples == 352
    start = 0
    for frames in (1, 12, 12, 100, 125):
        piece_S = pcm_S[640 * start : 640 * (start + frames) + front_end.lookback_samples]
        piece_LCT = front_end.features(piece_S, frames)
        torch.testing.assert_close(piece_LCT, whole_LCT[..., start : start + frames], atol=1e-6, rtol=0)
        start += frames
    assert start == 250


def test_causal() -> None:
    front_end = LogMel()
    pcm_S = noise(10, front_end)
    changed_S = pcm_S.clone()
    changed_S[front_end.lookback_samples + 640 * 6 :] += 1.0
    before_LCT, after_LCT = front_end.features(pcm_S, 10), front_end.features(changed_S, 10)
    assert torch.equal(before_LCT[..., :6], after_LCT[..., :6])
    assert (before_LCT[..., 6] - after_LCT[..., 6]).abs().max() > 0.1


def test_a_tone_lights_its_own_band_and_its_own_hop() -> None:
    front_end = LogMel(mels=40, hops=4)
    pcm_S = torch.zeros(front_end.lookback_samples + 640 * 3)
    t_S = torch.arange(320) / 16000
    pcm_S[front_end.lookback_samples + 640 + 320 :][:320] = torch.sin(2 * math.pi * 1000 * t_S)  # second half of frame 1
    y_THM = front_end.features(pcm_S, 3)[0].T.reshape(3, 4, 40)
    silence = (math.log(1e-6) + 10) / 3.6
    torch.testing.assert_close(y_THM[1, :2], torch.full((2, 40), silence))
    assert (y_THM[1, 2:].amax(-1) > 1.5).all()
    mel = lambda hz: 2595 * math.log10(1 + hz / 700)  # noqa: E731 a formula, used twice
    band = round((mel(1000) - mel(20)) / (mel(8000) - mel(20)) * 41) - 1
    assert abs(int(y_THM[1, 3].argmax()) - band) <= 1


def test_white_noise_is_flat_and_level_is_calibrated() -> None:
    y = LogMel().features(noise(500, LogMel(), seed=4), 500)
    density = (y * 3.6 - 10).exp().mean()
    assert density.item() == pytest.approx(0.06**2, rel=0.03)


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(BadWeights, match="do not divide"):
        LogMel(hops=3)
    with pytest.raises(BadWeights, match="empty"):
        LogMel(mels=200)
    with pytest.raises(ValueError, match="need a window of 992 samples"):
        LogMel().features(torch.zeros(640), 1)
