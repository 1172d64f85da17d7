"""Log-mel features as another throat, room or microphone would have given them, made from the features alone, so that each window has its own.

Synthetic voices are few and clean. Power densities are warped in frequency (the length of a throat), smeared in time (a room), weighed by a smooth curve
(a microphone), and get a noise floor. Legend: N windows, B bands, H vectors (four a video frame), T video frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import SAMPLE_RATE
from everface.networks.audio.features import LogMel, band_edges, mel

WARP, WARP_SHARE = 0.12, 0.5  # of frequencies, up or down; share of the windows
ROOM_SHARE, ROOM_T60_S, ROOM_GAIN = 0.35, (0.15, 0.65), (0.02, 0.32)  # time until an echo has faded by 60 dB; its power against the voice's
CURVE = ((1, 0.25), (2, 0.2), (3, 0.15), (5, 0.08))  # half periods over the bands, and the most of each, in units of the features (STD: 1 is 15.6 dB)
NOISE_SHARE, NOISE_DB, NOISE_TILT = 0.6, (-62.0, -28.0), 1.5  # of a density; nepers from the lowest band to the highest
UNCHANGED_SHARE = 0.25
ECHO_VECTORS = 40  # that are kept of an echo: 0.4 s


def vary(features_NCT: Tensor, front_end: LogMel, generator: torch.Generator) -> Tensor:
    """Each window in its own way, a quarter of them as they are. On the CPU."""
    count, channels, frames = features_NCT.shape
    bands = front_end.filters_FM.shape[1]
    logs_NBH = features_NCT.view(count, channels // bands, bands, frames).permute(0, 2, 3, 1).reshape(count, bands, -1)
    power_NBH = ((_warp(logs_NBH, generator) * front_end.STD + front_end.MEAN).exp() - front_end.FLOOR).clamp(min=0)
    power_NBH = _echo(power_NBH, front_end, generator) * _curve(count, bands, front_end, generator)[:, :, None]
    power_NBH = power_NBH + _noise(power_NBH, generator)
    varied_NBH = ((power_NBH + front_end.FLOOR).log() - front_end.MEAN) / front_end.STD
    varied_NCT = varied_NBH.view(count, bands, frames, -1).permute(0, 3, 1, 2).reshape(features_NCT.shape)
    keep_N = torch.rand(count, generator=generator) < UNCHANGED_SHARE
    return torch.where(keep_N[:, None, None], features_NCT, varied_NCT)


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _warp(logs_NBH: Tensor, generator: torch.Generator) -> Tensor:
    """Read between the bands, at frequencies that are scaled."""
    count, bands, _ = logs_NBH.shape
    factor_N = 1 + _uniform(generator, -WARP, WARP, count) * (torch.rand(count, generator=generator) < WARP_SHARE)
    edges_E = band_edges(bands)
    low, high = mel(edges_E[0]), mel(edges_E[-1])
    at_NB = ((mel(edges_E[1:-1] * factor_N[:, None]) - low) / (high - low) * (bands + 1) - 1).float().clamp(0, bands - 1)
    below_NB = at_NB.floor().long().clamp(max=bands - 2)
    share_NB1 = (at_NB - below_NB)[..., None]
    mix_NBB = torch.zeros(count, bands, bands).scatter_(2, below_NB[..., None], 1 - share_NB1)
    mix_NBB.scatter_add_(2, below_NB[..., None] + 1, share_NB1)
    return mix_NBB @ logs_NBH


def _echo(power_NBH: Tensor, front_end: LogMel, generator: torch.Generator) -> Tensor:
    """The power of a room, which fades by its time, behind the voice's own."""
    count, bands, vectors = power_NBH.shape
    t60_N = _uniform(generator, *ROOM_T60_S, count)
    gain_N = _uniform(generator, 0, 1, count).square() * (ROOM_GAIN[1] - ROOM_GAIN[0]) + ROOM_GAIN[0]
    gain_N = gain_N * (torch.rand(count, generator=generator) < ROOM_SHARE)
    fade_N1 = (10 ** (-6 / (t60_N * SAMPLE_RATE / front_end.hop)))[:, None]
    kernel_NK = gain_N[:, None] * fade_N1 ** torch.arange(ECHO_VECTORS).flip(0) * (1 - fade_N1) / fade_N1
    kernel_NK[:, -1] = 1.0
    padded_BNH = F.pad(power_NBH, (ECHO_VECTORS - 1, 0)).transpose(0, 1)
    return F.conv1d(padded_BNH, kernel_NK[:, None], groups=count).transpose(0, 1).reshape(count, bands, vectors)


def _curve(count: int, bands: int, front_end: LogMel, generator: torch.Generator) -> Tensor:
    """Factors of the power [N, B]."""
    at_B, curve_NB = torch.linspace(0, 1, bands), torch.zeros(count, bands)
    for half_periods, most in CURVE:
        curve_NB += _uniform(generator, -most, most, count, 1) * torch.cos(math.pi * (half_periods * at_B + _uniform(generator, 0, 2, count, 1)))
    return (curve_NB * front_end.STD).exp()


def _noise(power_NBH: Tensor, generator: torch.Generator) -> Tensor:
    """A density that falls or rises with frequency, and varies as noise does."""
    count, bands, _ = power_NBH.shape
    low, high = NOISE_DB
    db_N1 = low + (high - low) * torch.rand(count, 1, generator=generator).square()
    tilt_N1 = _uniform(generator, -NOISE_TILT, NOISE_TILT, count, 1)
    on_N1 = torch.rand(count, 1, generator=generator) < NOISE_SHARE
    level_NB = on_N1 * 10 ** (db_N1 / 10) * (2 * tilt_N1 * (torch.linspace(0, 1, bands) - 0.5)).exp()
    return level_NB[:, :, None] * (0.5 * torch.randn(power_NBH.shape, generator=generator)).exp()
