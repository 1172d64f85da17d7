"""Wall time of a session: when each block was emitted and delivered. The clock of the stream itself is the sample count."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

KEPT = 1000  # blocks of history; a session lasts for ever, its timeline does not


@dataclass
class Beat:
    """One block. Times are time.monotonic() seconds; delivered_s is None while in flight or if dropped."""

    index: int
    pts: int
    emitted_s: float
    delivered_s: float | None = None
    frames: int = 0

    @property
    def seconds(self) -> float | None:
        """Time in the pipeline, from emission to delivery."""
        return None if self.delivered_s is None else self.delivered_s - self.emitted_s


class Clock:
    """Timeline of the last KEPT blocks, first-frame time, and frames per second so far."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.beats: deque[Beat] = deque(maxlen=KEPT)
        self.frames = 0  # delivered so far
        self._heard_s: float | None = None
        self._emitted_s: float | None = None
        self._first_s: float | None = None
        self._last_s: float | None = None

    def on_cancel(self) -> None:
        """Sound was accepted."""
        self._heard_s = self._heard_s or self._now()

    def emit(self, index: int, pts: int) -> None:
        beat = Beat(index, pts, self._now())
        self._emitted_s = self._emitted_s or beat.emitted_s
        self.beats.append(beat)

    def deliver(self, index: int, frames: int) -> None:
        now_s = self._now()
        self._first_s, self._last_s = self._first_s or now_s, now_s
        self.frames += frames
        for beat in reversed(self.beats):
            if beat.index == index:
                beat.delivered_s, beat.frames = now_s, frames
                return

    @property
    def first_frame_s(self) -> float | None:
        """From the first accepted sound to the first delivered frame."""
        return None if self._first_s is None or self._heard_s is None else self._first_s - self._heard_s

    @property
    def fps(self) -> float | None:
        """Delivered frames over the time from the first emission to the last delivery."""
        if self._last_s is None or self._emitted_s is None or self._last_s <= self._emitted_s:
            return None
        return self.frames / (self._last_s - self._emitted_s)
