"""Background audio under a voice: slow chords, white or pink noise, babble. Mono float32 at 16 kHz, drawn from a generator.

It is 15-30 dB below the speech level of `voices`. The mouth's true motion is always computed from the voice alone.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import SAMPLE_RATE
from everface.train.synthetic.voices import SPEECH_DB

Kind = Literal["music", "white", "pink", "babble"]
KIND_ODDS = (0.5, 0.12, 0.18, 0.20)
QUIETEST_DB, LOUDEST_DB = -30.0, -15.0  # rms relative to speech
CHORDS = ((0, 4, 7), (5, 9, 12), (7, 11, 14), (-3, 0, 4), (2, 5, 9), (0, 3, 7), (-4, 0, 3))  # semitones above the key
TALKERS = 6


def add_background(voice_S: Tensor, generator: torch.Generator, kind: Kind | None = None) -> Tensor:
    """The voice (of level `SPEECH_DB`, or silent) with background audio added, of a random kind unless one is given."""
    return voice_S + make_background(len(voice_S), generator, kind)


def make_background(samples: int, generator: torch.Generator, kind: Kind | None = None) -> Tensor:
    """Background audio [samples], `QUIETEST_DB` to `LOUDEST_DB` relative to `SPEECH_DB` rms."""
    drawn: Kind = kind or get_args(Kind)[int(torch.multinomial(torch.tensor(KIND_ODDS), 1, generator=generator))]
    level_db = SPEECH_DB + QUIETEST_DB + (LOUDEST_DB - QUIETEST_DB) * torch.rand(1, generator=generator).item()
    noise_S = {"music": _music, "white": _white, "pink": _pink, "babble": _babble}[drawn](samples, generator)
    return noise_S * (10 ** (level_db / 20) / noise_S.square().mean().sqrt().clamp(min=1e-9))


def _music(samples: int, generator: torch.Generator) -> Tensor:
    """Chords of three sines, each with its octave, 1-3 s long, cross-faded."""
    key_hz = 110 * 2 ** torch.rand(1, generator=generator).item()
    time_S, noise_S = torch.arange(samples) / SAMPLE_RATE, torch.zeros(samples)
    at_s = -3 * torch.rand(1, generator=generator).item()  # it may have begun before the clip
    while at_s < samples / SAMPLE_RATE:
        length_s = 1 + 2 * torch.rand(1, generator=generator).item()
        chord = CHORDS[int(torch.randint(len(CHORDS), (1,), generator=generator))]
        since_S = time_S - at_s
        swell_S = (since_S / 0.25).clamp(0, 1) * ((1.3 * length_s - since_S) / (0.3 * length_s)).clamp(0, 1)
        phase_3 = 2 * math.pi * torch.rand(3, generator=generator)
        for semitones, phase in zip(chord, phase_3):
            cycle_S = 2 * math.pi * key_hz * 2 ** (semitones / 12) * time_S + phase
            noise_S += swell_S * (torch.sin(cycle_S) + 0.3 * torch.sin(2 * cycle_S))
        at_s += length_s
    return noise_S


def _white(samples: int, generator: torch.Generator) -> Tensor:
    return torch.randn(samples, generator=generator)


def _pink(samples: int, generator: torch.Generator) -> Tensor:
    """Power falls as 1 / f above 40 Hz."""
    spectrum_F = torch.fft.rfft(_white(samples, generator))
    hertz_F = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    return torch.fft.irfft(spectrum_F / hertz_F.clamp(min=40).sqrt(), samples)


def _babble(samples: int, generator: torch.Generator) -> Tensor:
    """Many talkers at once: each is noise in a band within 200-3000 Hz, whose level changes four times a second."""
    hertz_F = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE).clamp(min=1)
    noise_S = torch.zeros(samples)
    for _ in range(TALKERS):
        middle_hz = 200 * 15 ** torch.rand(1, generator=generator).item()
        band_F = torch.exp(-(torch.log2(hertz_F / middle_hz) / 0.8).square())
        voice_S = torch.fft.irfft(torch.fft.rfft(_white(samples, generator)) * band_F, samples)
        syllables = torch.rand(samples * 4 // SAMPLE_RATE + 2, generator=generator).square()
        envelope_S = F.interpolate(syllables[None, None], samples, mode="linear", align_corners=True)[0, 0]
        noise_S += envelope_S * voice_S / voice_S.square().mean().sqrt().clamp(min=1e-9)
    return noise_S
