"""Mel-frequency cepstra as SyncNet was trained on them: those of the package python_speech_features at its defaults.

Frames of 25 ms every 10 ms without a window, pre-emphasis 0.97, FFT of 512, 26 triangles of the HTK mel scale over 0..8 kHz with edges rounded
to bins, logarithm, orthonormal DCT-II, 13 coefficients, sine lifter of 22, the first coefficient replaced by the frame's log energy.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import SAMPLE_RATE

LENGTH, STEP, FFT, BANDS, COEFFICIENTS, LIFTER, EMPHASIS = 400, 160, 512, 26, 13, 22, 0.97
TINY = torch.finfo(torch.float64).eps


def mfcc(pcm_S: Tensor) -> Tensor:
    """16 kHz audio at the scale of 16-bit integers to cepstra [frames, 13] float32, 100 a second."""
    x_S = pcm_S.double()
    x_S = torch.cat([x_S[:1], x_S[1:] - EMPHASIS * x_S[:-1]])
    count = 1 if len(x_S) <= LENGTH else 1 + math.ceil((len(x_S) - LENGTH) / STEP)
    framed = F.pad(x_S, (0, (count - 1) * STEP + LENGTH - len(x_S))).unfold(0, LENGTH, STEP)
    power = torch.fft.rfft(framed, FFT).abs().square() / FFT
    energy = power.sum(1)
    bands = (power @ filters().T).clamp(min=TINY).log()
    k, n = torch.arange(COEFFICIENTS, dtype=torch.float64)[:, None], torch.arange(BANDS, dtype=torch.float64)
    dct = torch.cos(math.pi * k * (2 * n + 1) / (2 * BANDS)) * math.sqrt(2 / BANDS)
    dct[0] /= math.sqrt(2)
    cepstra = bands @ dct.T * (1 + LIFTER / 2 * torch.sin(math.pi * k[:, 0] / LIFTER))
    cepstra[:, 0] = energy.clamp(min=TINY).log()
    return cepstra.float()


def filters() -> Tensor:
    """Triangles [BANDS, FFT / 2 + 1] float64, peak 1."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    hz = 700 * (10 ** (torch.linspace(0, top, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    edge = torch.floor((FFT + 1) * hz / SAMPLE_RATE)
    bin_F = torch.arange(FFT // 2 + 1, dtype=torch.float64)
    low, peak, high = edge[:-2, None], edge[1:-1, None], edge[2:, None]
    up, down = (bin_F - low) / (peak - low), (high - bin_F) / (high - peak)
    return torch.where((bin_F >= low) & (bin_F < peak), up, torch.where((bin_F >= peak) & (bin_F < high), down, 0.0))
