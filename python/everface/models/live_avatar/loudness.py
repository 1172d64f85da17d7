"""Brings a voice to the level that the model was trained at. For the model's copy of the audio only: nobody listens to it.

A voice's level is what the loudest tenth of its last two seconds exceeds, in frames of 20 ms, from 100 Hz on. Training speech is at
-17 +- 4 dBFS by this measure. Within that range the gain is exactly 1; outside it, the gain brings the level to `WANTED_DB`. Frames count as
voice when they stand out of the quietest of the last second: pauses and steady noise change nothing, so they keep the gain of the voice
before them. No gain lifts the noise floor above `NOISE_DB`.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.log import log
from everface.runtime.model import Window

FRAME = 320  # samples, 20 ms
LOWEST_HZ = 100
WANTED_DB = -18.0
RANGE_DB = (-21.5, -12.5)  # levels that are left alone; of a voice just begun, to be sure, ones within FAR_DB of WANTED_DB
FAR_DB = 6.5
NEAR_DB = 1.0  # a leveled voice that is this near to WANTED_DB is left alone again
VOICE_FRAMES, SURE_FRAMES, FIRST_FRAMES = 100, 50, 10  # frames of voice that are remembered; enough to judge by; enough to begin with
QUIETEST_TENTH, LOUDEST_TENTH = 0.1, 0.9
STANDS_OUT_DB = 9.0  # above the quietest frame of the last second
FAINTEST_DB, FAINTEST_VOICE_DB = -70.0, -54.0  # of a frame, of a voice
SECOND, FLOOR_FRAMES = 50, 250  # frames
SPREAD_DB = 3.5  # between the loud and the quiet tenth of a voice; of a steady noise they are nearer
NOISE_DB, NOISE_RISES_DB = -45.0, 3.0
RISE_DB = 0.12  # for each frame of voice: 6 dB a second
RISING, FALLING, BEGINNING = 24, 5, 2  # frames in which the gain gets where it should be
LOUDEST_DB = -8.0  # of a frame that is raised: as training's loudest


class LoudnessFollower:
    """One session's. `lookback`, `lookahead`: samples of a window before and behind its block. Not thread-safe."""

    def __init__(self, lookback: int, lookahead: int) -> None:
        self._lookback, self._around = lookback, lookback + lookahead
        self._turn: int | None = None
        self._kept_S = torch.zeros(0)  # leveled audio that the next window begins with
        self._voice: deque[float] = deque(maxlen=VOICE_FRAMES)  # dB
        self._recent: deque[float] = deque(maxlen=FLOOR_FRAMES)  # dB, pauses too
        self._voice_db = 0.0  # the gain that the voice needs
        self._gain_db = 0.0  # the same, or less because of noise
        self._end_db = 0.0  # at the last sample
        self._leveled = self._begun = self._logged = False

    def apply(self, window: Window) -> torch.Tensor:
        """A session's windows in order: float32 [lookback + block + lookahead] to the same, leveled. Where the level was right so far, it is
        the same tensor's values."""
        audio_S = window.audio_S
        if window.turn != self._turn:  # silence is before it
            self._turn, self._kept_S = window.turn, audio_S[: self._lookback]
        valid = window.frames * SAMPLES_PER_FRAME + self._around - len(self._kept_S)  # behind it the last block is filled up
        leveled_S = torch.cat([self._kept_S, self._level(audio_S[len(self._kept_S) :], valid)])
        self._kept_S = leveled_S[len(leveled_S) - self._around :].clone()
        return leveled_S

    def _level(self, audio_S: torch.Tensor, valid: int) -> torch.Tensor:
        """Audio that was not in a window before, `valid` samples of it the caller's."""
        level_F = frame_levels(audio_S)
        begin_db, frames = self._gain_db, len(level_F)
        ramp = self._follow(level_F[: valid // FRAME])
        gain_F = begin_db + (self._gain_db - begin_db) * np.minimum(1.0, np.arange(1, frames + 1) / ramp)
        gain_F = np.where(gain_F > 0, np.minimum(gain_F, np.maximum(LOUDEST_DB - level_F, 0.0)), gain_F)
        edge_E = np.concatenate([[self._end_db], np.minimum(gain_F[:-1], gain_F[1:]), gain_F[-1:]])
        self._end_db = float(edge_E[-1])
        if not edge_E.any():
            return audio_S
        gain_S = np.interp(np.arange(1, len(audio_S) + 1), np.arange(frames + 1) * FRAME, edge_E)
        return audio_S * torch.from_numpy(10 ** (gain_S / 20)).to(audio_S.dtype)

    def _follow(self, level_F: np.ndarray) -> int:
        """Set the gain by these frames. Returns the frames in which it gets there."""
        self._recent.extend(level_F.tolist())
        recent = np.array(self._recent)
        voice_F = level_F[level_F > max(recent[-SECOND:].min() + STANDS_OUT_DB, FAINTEST_DB)]
        self._voice.extend(voice_F.tolist())
        most_db = max(0.0, NOISE_DB - _floor(recent)) if len(recent) >= VOICE_FRAMES else math.inf
        known = len(self._voice) >= FIRST_FRAMES
        quiet_db, level_db = np.quantile(self._voice, (QUIETEST_TENTH, LOUDEST_TENTH)).tolist() if known else (0.0, 0.0)
        begins, gain_db = not self._begun, self._gain_db
        if len(voice_F) and level_db > FAINTEST_VOICE_DB and level_db - quiet_db > SPREAD_DB:
            self._begun = len(self._voice) >= SURE_FRAMES
            self._choose(level_db)
            wanted_db = WANTED_DB - level_db if self._leveled else 0.0
            self._voice_db = wanted_db if begins else min(wanted_db, self._voice_db + RISE_DB * len(voice_F))
            self._gain_db = min(self._voice_db, most_db)
        elif gain_db > most_db + NOISE_RISES_DB:
            self._gain_db = most_db
        self._report()
        return BEGINNING if begins else RISING if self._gain_db > gain_db else FALLING

    def _choose(self, level_db: float) -> None:
        """Whether the voice is leveled."""
        sure, off_db = len(self._voice) >= SURE_FRAMES, abs(WANTED_DB - level_db)
        if self._leveled:
            self._leveled = off_db > NEAR_DB
        else:
            self._leveled = off_db > FAR_DB or (sure and not RANGE_DB[0] <= level_db <= RANGE_DB[1])

    def _report(self) -> None:
        if abs(self._gain_db) < 1.0 or self._logged:
            return
        self._logged = True
        log.info(
            "the voice is too %s for the model, which gets it %.0f dB %s; what is played stays as it is",
            *(("quiet", self._gain_db, "louder") if self._gain_db > 0 else ("loud", -self._gain_db, "quieter")),
        )


def frame_levels(audio_S: torch.Tensor) -> np.ndarray:
    """Level of each whole frame from LOWEST_HZ on, in dBFS rms; float64 [S // FRAME]. Neither a constant offset nor hum counts."""
    frame_FS = audio_S[: len(audio_S) // FRAME * FRAME].double().view(-1, FRAME)
    power_FB = torch.fft.rfft(frame_FS).abs().square()[:, LOWEST_HZ * FRAME // SAMPLE_RATE :]
    return 10 * np.log10(2 / FRAME**2 * power_FB.sum(1).numpy() + 1e-12)


def _floor(recent_F: np.ndarray) -> float:
    """Level of the quietest tenth of a second."""
    power_F = 10 ** (recent_F / 10)
    return float(10 * np.log10(np.convolve(power_F, np.full(5, 0.2), "valid").min())) if len(power_F) >= 5 else 0.0
