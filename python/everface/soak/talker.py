"""What a session is made to do: speak, pause, be interrupted, at a script that a seed decides. Its clock is the media's."""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np

from everface.core.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

AHEAD_FRAMES = 38  # of audio that is pushed at once when speech begins: a session cannot show what it does not have


class Hears(Protocol):
    """A session, or a connection to one."""

    def push(self, samples_S: np.ndarray) -> None:
        """int16 at 16 kHz."""
        ...

    def end_segment(self) -> None: ...
    def interrupt(self) -> None: ...


class Talker:
    """Call `frame` for every frame that was shown."""

    def __init__(self, to: Hears, speech_S: np.ndarray, seed: int = 0) -> None:
        self._to, self._speech_S, self._rng = to, speech_S, random.Random(seed)
        self.segments = self.interruptions = 0
        self._at = 0  # of the speech
        self._speak = 0  # frames of audio to push in this segment
        self._cut = 0  # frames until an interruption, 0: none
        self._pause = FPS  # frames until speech begins

    def frame(self) -> None:
        if self._pause:
            self._pause -= 1
            if not self._pause:
                self._begin()
        elif self._cut:
            self._cut -= 1
            self._push(1)
            if not self._cut:
                self._to.interrupt()
                self.interruptions += 1
                self._pause = self._rng.randint(1, 3 * FPS)
        else:
            self._push(1)
            if not self._speak:
                self._to.end_segment()
                self._pause = AHEAD_FRAMES + self._rng.randint(1, 4 * FPS)

    def _begin(self) -> None:
        self.segments += 1
        self._speak = self._rng.randint(2 * FPS, 8 * FPS)
        self._cut = self._rng.randint(1, self._speak - AHEAD_FRAMES) if self.segments % 3 == 0 else 0
        self._push(AHEAD_FRAMES)

    def _push(self, frames: int) -> None:
        frames = min(frames, self._speak)
        self._speak -= frames
        for _ in range(frames):
            piece = self._speech_S[self._at : self._at + SAMPLES_PER_FRAME]
            self._at = (self._at + SAMPLES_PER_FRAME) % (len(self._speech_S) - SAMPLES_PER_FRAME)
            self._to.push(piece)


def read_speech() -> np.ndarray:
    """The bundled voice, int16 at 16 kHz."""
    from everface.avatar.demo import AUDIO
    from everface.media.audio import read_audio

    return np.concatenate([(chunk * 32767).astype(np.int16) for chunk in read_audio(AUDIO, SAMPLE_RATE)])
