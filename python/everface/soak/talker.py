"""What a session is made to do: speak, pause, be interrupted, at a script that a seed decides. Its clock is the media's."""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np

from everface.core.config import SAMPLE_RATE

AHEAD_S = 1.52  # of audio that is pushed at once when speech begins: a session cannot show what it does not have


class Hears(Protocol):
    """A session, or a connection to one."""

    def push(self, samples_S: np.ndarray) -> None:
        """int16 at 16 kHz."""
        ...

    def end_segment(self) -> None: ...
    def interrupt(self) -> None: ...


class Talker:
    """Call `frame` for every frame that was shown, of `fps` a second."""

    def __init__(self, to: Hears, speech_S: np.ndarray, fps: int, seed: int = 0) -> None:
        self._to, self._speech_S, self._fps, self._rng = to, speech_S, fps, random.Random(seed)
        self._ahead, self._frame = round(AHEAD_S * fps), SAMPLE_RATE // fps  # frames, samples
        self.segments = self.interruptions = 0
        self._at = 0  # of the speech
        self._speak = 0  # frames of audio to push in this segment
        self._cut = 0  # frames until an interruption, 0: none
        self._pause = fps  # frames until speech begins

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
                self._pause = self._rng.randint(1, 3 * self._fps)
        else:
            self._push(1)
            if not self._speak:
                self._to.end_segment()
                self._pause = self._ahead + self._rng.randint(1, 4 * self._fps)

    def _begin(self) -> None:
        self.segments += 1
        self._speak = self._rng.randint(2 * self._fps, 8 * self._fps)
        self._cut = self._rng.randint(1, self._speak - self._ahead) if self.segments % 3 == 0 else 0
        self._push(self._ahead)

    def _push(self, frames: int) -> None:
        frames = min(frames, self._speak)
        self._speak -= frames
        for _ in range(frames):
            piece = self._speech_S[self._at : self._at + self._frame]
            self._at = (self._at + self._frame) % (len(self._speech_S) - self._frame)
            self._to.push(piece)


def read_speech() -> np.ndarray:
    """The bundled voice, int16 at 16 kHz."""
    from everface.avatar.demo import AUDIO
    from everface.media.audio import read_audio

    return np.concatenate([(chunk * 32767).astype(np.int16) for chunk in read_audio(AUDIO, SAMPLE_RATE)])
