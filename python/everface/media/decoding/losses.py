"""Counts what of an audio file could not be decoded, and fills its time with silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from everface.core.errors import BadInput
from everface.core.log import log

HOPELESS_S = 10.0  # damage that may come before more of a file is decoded than is damaged


class AudioChunk(NamedTuple):
    """`samples_SC`: float32, full scale 1. `channels`: ffmpeg's names of the channels, such as FL; "NONE" where the file names none."""

    samples_SC: np.ndarray
    rate_hz: int
    channels: tuple[str, ...]


class Losses:
    """What one pass over a file lost. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.decoded_s = 0.0
        self.packets = 0  # that could not be decoded
        self.samples = 0  # that were not finite
        self._gaps = 0  # that became silence
        self._damaged_s = self._silence_s = 0.0
        self._first_s: float | None = None

    @property
    def end_s(self) -> float:
        """Length of the audio so far, silence included."""
        return self.decoded_s + self._silence_s

    def add_damage(self, seconds: float, at_s: float | None = None) -> None:
        """Audio that could not be decoded, at the end of what was or elsewhere. Raises BadInput when it is more than what could be."""
        if self._first_s is None:
            self._first_s = self.end_s if at_s is None else at_s
        self._damaged_s += seconds
        if self._damaged_s > max(HOPELESS_S, self.decoded_s):
            self._refuse()

    def add_unusable(self, samples: int, rate_hz: int, at_s: float) -> None:
        """Samples that were decoded, will be counted as such, and become silence."""
        self.samples += samples
        self.decoded_s -= samples / rate_hz
        self._silence_s += samples / rate_hz
        self.add_damage(samples / rate_hz, at_s)

    def fill(self, seconds: float, like: AudioChunk) -> Iterator[AudioChunk]:
        """Silence in the format of another chunk, in chunks of at most a second."""
        if self._first_s is None:
            self._first_s = self.end_s
        self._gaps += 1
        samples = round(seconds * like.rate_hz)
        while samples > 0:
            part = min(samples, like.rate_hz)
            samples -= part
            self._silence_s += part / like.rate_hz
            yield like._replace(samples_SC=np.zeros((part, len(like.channels)), np.float32))

    def finish(self, report: bool) -> None:
        """At the end of the file. Raises BadInput if most of it was damaged; else, with `report`, logs what was lost."""
        if self._damaged_s > self.decoded_s and self.end_s > 0:
            self._refuse()
        if not report or self._first_s is None:
            return
        if self._damaged_s:
            log.warning(
                "%s is damaged, first at %.2f s: %d packets and %d samples could not be used, and %.2f s became silence; the rest is used",
                self.path, self._first_s, self.packets, self.samples, self._silence_s,
            )  # fmt: skip
        else:
            log.info("%s lacks audio in %d places, first at %.2f s: %.2f s became silence", self.path, self._gaps, self._first_s, self._silence_s)

    def _refuse(self) -> None:
        at_s = self._first_s or 0.0
        raise BadInput(f"the audio file {self.path} is damaged at {at_s:.2f} s, and most of it is lost: repair or export it again")
