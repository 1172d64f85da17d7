"""Audio front ends: 16 kHz samples -> features at the video frame rate. Pure functions of the samples in their window.

A front end has a look-back and a look-ahead in samples around the frames asked for, and the caller zero-pads at the ends of the
stream, so a file computed in one piece and a live stream go through the same call. Video frame n shows samples 640n..640(n+1)-1.
Legend: S samples, L feature layers, C channels, T video frames, M mel bands.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadWeights


class FrontEnd(Protocol):
    """An audio front end, as the stream uses it."""

    layers: int  # L
    channels: int  # C
    lookback_samples: int  # samples needed before the first wanted frame
    lookahead_samples: int  # samples needed after the last wanted frame: they add to the latency

    def features(self, pcm_S: Tensor, frames: int) -> Tensor:
        """[lookback + 640 frames + lookahead] float32 samples at 16 kHz -> [L, C, frames] float32 of exactly those frames."""
        ...

    def windowed(self, lookback_samples: int, lookahead_samples: int) -> FrontEnd:
        """The same with another window, where it has a choice."""
        ...


def check_window(front_end: FrontEnd, pcm_S: Tensor, frames: int) -> None:
    """Raises ValueError for a window of another length, which would silently shift audio against video."""
    wanted = front_end.lookback_samples + SAMPLES_PER_FRAME * frames + front_end.lookahead_samples
    if pcm_S.shape != (wanted,) or frames < 1:
        raise ValueError(f"{frames} frames need a window of {wanted} samples, got shape {tuple(pcm_S.shape)}")


def mel(hz: Tensor) -> Tensor:
    """The HTK mel scale."""
    return 2595 * torch.log10(1 + hz / 700)


def band_edges(mels: int) -> Tensor:
    """Where `mels` bands begin, peak and end, [M + 2] in Hz, float64: evenly spaced on the mel scale from 20 Hz to 8 kHz."""
    low, high = mel(torch.tensor([20.0, SAMPLE_RATE / 2], dtype=torch.float64)).tolist()
    return 700 * (10 ** (torch.linspace(low, high, mels + 2, dtype=torch.float64) / 2595) - 1)


def mel_filters(mels: int, bins: int) -> Tensor:
    """Triangles between `band_edges`, [bins, M] float32.

    Each triangle sums to 1, so a band reads the mean power density under it and white noise is flat. Errors: BadWeights, when
    the bands are narrower than a bin and one would be empty.
    """
    edges_hz = band_edges(mels)
    bins_hz = torch.linspace(0, SAMPLE_RATE / 2, bins, dtype=torch.float64)[:, None]
    low_hz, peak_hz, high_hz = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    up_FM, down_FM = (bins_hz - low_hz) / (peak_hz - low_hz), (high_hz - bins_hz) / (high_hz - peak_hz)
    filters_FM = torch.minimum(up_FM, down_FM).clamp(min=0)
    if (filters_FM.sum(0) == 0).any():
        raise BadWeights(f"{mels} mel bands are too many for {bins} frequency bins: some band is empty, use fewer mels")
    return (filters_FM / filters_FM.sum(0)).float()


class LogMel(nn.Module):
    """Causal log-mel energies, `hops` vectors a video frame, concatenated oldest first: L = 1, C = hops * mels.

        y = (ln(mel power density + FLOOR) - MEAN) / STD,   power density = |rfft(hann * x)|^2 / sum(hann^2)

    Vector i of frame n is the 512-sample window that ends with sample 640n + 640(i+1)/hops - 1: no look-ahead, and no statistics of
    the utterance, so a piece of a file gives the file's own numbers. Full-scale white noise has density 1 = 0 dB.
    """

    WINDOW = 512  # samples, 32 ms
    # FLOOR is -60 dBFS, a quiet room: below it nothing is speech, and digital silence becomes -1.06, not -inf.
    # MEAN and STD over all bands and hops, pauses included, of six synthetic voices (English, German, French; 70 s) brought to
    # -24 dBFS RMS: mean -9.5..-10.2, std 3.5..3.7. A level 6 dB away moves y by 0.39 only.
    FLOOR, MEAN, STD = 1e-6, -10.0, 3.6

    def __init__(self, mels: int = 40, hops: int = 4) -> None:
        super().__init__()
        if hops < 1 or SAMPLES_PER_FRAME % hops or SAMPLES_PER_FRAME // hops > self.WINDOW:
            raise BadWeights(
                f"{hops} mel vectors do not divide the {SAMPLES_PER_FRAME} samples of a video frame: use 2, 4, 5 or 8"
            )
        self.hop = SAMPLES_PER_FRAME // hops
        self.layers, self.channels = 1, mels * hops
        self.lookback_samples, self.lookahead_samples = self.WINDOW - self.hop, 0
        window_W = torch.hann_window(self.WINDOW, dtype=torch.float64)
        self.window_W: Tensor
        self.filters_FM: Tensor
        self.register_buffer("window_W", (window_W / window_W.square().sum().sqrt()).float(), persistent=False)
        self.register_buffer("filters_FM", mel_filters(mels, self.WINDOW // 2 + 1), persistent=False)

    def windowed(self, lookback_samples: int, lookahead_samples: int) -> LogMel:
        """Itself: no more than its window is in its features."""
        return self

    @torch.no_grad()
    def features(self, pcm_S: Tensor, frames: int) -> Tensor:
        """[512 - 640 / hops + 640 frames] samples -> [1, hops * mels, frames]."""
        check_window(self, pcm_S, frames)
        pcm_S = pcm_S.to(self.window_W.device, torch.float32)
        spectrum_HF = torch.fft.rfft(pcm_S.unfold(0, self.WINDOW, self.hop) * self.window_W)
        power_HF = spectrum_HF.real.square() + spectrum_HF.imag.square()
        y_HM = (torch.log(power_HF @ self.filters_FM + self.FLOOR) - self.MEAN) / self.STD
        return y_HM.reshape(frames, self.channels).T[None].contiguous()
