"""How a character moves: the mouth follows the audio by a causal rule; blinks, sway and brows are drawn at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from everface.core.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.train.synthetic.parameters import ANIMATION

NEUTRAL_WIDTH = 0.5
PAUSE_FRAMES = 5  # a phrase ends where the mouth is shut for at least so long
RATIO_MEAN_DB, RATIO_SCALE_DB, WIDTH_GAIN = -10.7, 3.0, 1.45  # center, steepness and gain of the width rule: speech fills 0..1


def neutral(n: int) -> Tensor:
    """The reference pose: mouth shut, eyes open, centered. Returns anim_NA."""
    anim_NA = torch.zeros(n, len(ANIMATION))
    anim_NA[:, 1] = NEUTRAL_WIDTH
    return anim_NA


def mouth_targets(pcm_S: Tensor) -> tuple[Tensor, Tensor]:
    """How a drawn mouth moves to this speech: open_T and wide_T, 0..1, at 25 frames per second. Causal: frame n depends on samples below
    640 (n + 1) only. pcm_S: mono float32 at 16 kHz.

    open: clip((dB + 42) / 28, 0, 1) of the rms over 40 ms, low-passed with one pole, 0.65 per frame when opening and 0.45 when closing.
    wide: a logistic of the energy ratio in dB, 1.6-3.6 kHz over 0.2-1.0 kHz, of the last 80 ms (Hann), pulled to `NEUTRAL_WIDTH` in silence,
    scaled by `WIDTH_GAIN` around it, low-passed with 0.3 per frame: front vowels and hisses spread the mouth, dark vowels round it.
    """
    T = len(pcm_S) // SAMPLES_PER_FRAME
    pcm_S = pcm_S[: T * SAMPLES_PER_FRAME].double()
    level_T = 10 * torch.log10(pcm_S.view(T, SAMPLES_PER_FRAME).square().mean(1) + 1e-10)
    window_TS = torch.cat([pcm_S.new_zeros(SAMPLES_PER_FRAME), pcm_S]).unfold(0, 2 * SAMPLES_PER_FRAME, SAMPLES_PER_FRAME) * torch.hann_window(2 * SAMPLES_PER_FRAME, dtype=torch.float64)
    power_TF = torch.fft.rfft(window_TS).abs().square()
    hertz_F = torch.arange(power_TF.shape[1]) * SAMPLE_RATE / (2 * SAMPLES_PER_FRAME)

    def band(lo: float, hi: float) -> Tensor:
        return power_TF[:, (hertz_F >= lo) & (hertz_F < hi)].sum(1) + 1e-6

    ratio_T = 10 * torch.log10(band(1600, 3600) / band(200, 1000))
    voiced_T = ((level_T + 44) / 12).clamp(0, 1)
    width_T = NEUTRAL_WIDTH + WIDTH_GAIN * voiced_T * (torch.sigmoid((ratio_T - RATIO_MEAN_DB) / RATIO_SCALE_DB) - 0.5)
    open_T, wide_T = torch.zeros(T), torch.zeros(T)
    opening, wide = 0.0, NEUTRAL_WIDTH
    for n, (target, width) in enumerate(zip(((level_T + 42) / 28).clamp(0, 1).tolist(), width_T.tolist())):
        opening += (0.65 if target > opening else 0.45) * (target - opening)
        wide += 0.3 * (width - wide)
        open_T[n], wide_T[n] = opening, min(max(wide, 0.0), 1.0)
    return open_T, wide_T


def sample_motion(open_T: Tensor, wide_T: Tensor, generator: torch.Generator) -> Tensor:
    """Animate a face whose mouth moves by open_T, wide_T at 25 frames per second. Returns anim_TA.

    Blinks are mostly at the end of a phrase (`blink_frames`); sway is a sum of 0.05-0.4 Hz sines of random phase (at most 3 px and
    3 degrees at 128 px); brows follow a slow sine and the low-passed opening.
    """
    T = len(open_T)
    time_s = torch.arange(T) / FPS

    def rand(n: int = 1) -> Tensor:
        return torch.rand(n, generator=generator)

    def sway(amplitude: float) -> Tensor:
        hertz, phase, weight = 0.05 + 0.35 * rand(3), 2 * math.pi * rand(3), 0.3 + rand(3)
        return amplitude * (torch.sin(2 * math.pi * hertz * time_s[:, None] + phase) * weight / weight.sum()).sum(1)

    blink_T = blink_frames(open_T, generator)
    envelope, level = torch.zeros(T), float(open_T[0])
    for i, value in enumerate(open_T.tolist()):
        level += 0.12 * (value - level)
        envelope[i] = level
    brow_T = (0.25 + sway(0.25) + 0.5 * envelope).clamp(0, 1)
    return torch.stack([open_T.float(), wide_T.float(), blink_T, brow_T, sway(0.047), sway(0.032), sway(0.052)], 1)


def blink_frames(open_T: Tensor, generator: torch.Generator) -> Tensor:
    """How far the lids are down, 0..1.

    People blink as they fall silent (Nakano and Kitazawa 2010, eyeblink entrainment at breakpoints of speech). Here they do nine times
    in ten when the mouth shuts for `PAUSE_FRAMES` or more, and otherwise after 4-8 s without a blink. A blink lasts 6-8 frames and the
    next one is at least a second away. Most blinks can so be predicted from the audio: while the lids are down, the end of the phrase is
    still among the nine frames that the audio token of a latent covers (`networks/audio/causal_encoder.py`).
    """
    shut = (open_T < 0.2).tolist()
    blink_T = torch.zeros(len(shut))

    def rand() -> float:
        return torch.rand(1, generator=generator).item()

    # The clip begins at a random moment between two blinks: one may begin from `free` on, and must at `patience`.
    free = int(FPS * (1 - 5 * rand()))
    patience = int(FPS * 8 * rand())
    for t in range(len(shut)):
        ended = t > 0 and not shut[t - 1] and all(shut[t : t + PAUSE_FRAMES])
        if t >= free and (t >= patience or (ended and rand() < 0.9)):
            length = 6 + int(3 * rand())
            shape = (1.45 * torch.sin(math.pi * (torch.arange(length) + 1.0) / (length + 1))).clamp(max=1.0)
            blink_T[t : t + length] = shape[: len(shut) - t]
            free = t + length + FPS
            patience = free + int(FPS * (3 + 4 * rand()))
    return blink_T
