"""Wall time of a session: when each block was sent and delivered. The clock of the stream itself is the count of accepted samples."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

KEPT = 1000  # blocks of history; a session has no end, its timeline is bounded


@dataclass
class BlockTiming:
    """One block. Times are time.monotonic() seconds, None while in flight or if dropped: `first_s` of its first frames, `delivered_s` of its last."""

    index: int
    pts: int
    sent_s: float
    first_s: float | None = None
    delivered_s: float | None = None
    frames: int = 0
    needed_s: float = 0.0  # how long before its first frame's time the block must be sent for none of them to be late

    @property
    def seconds(self) -> float | None:
        """Time in the pipeline, from sending to the delivery of all."""
        return None if self.delivered_s is None else self.delivered_s - self.sent_s


class Timeline:
    """Timings of the last KEPT blocks, first-frame latency, and frames per second so far. `frame_s`: length of a frame. Not thread-safe."""

    def __init__(self, now: Callable[[], float] = time.monotonic, frame_s: float = 0.04) -> None:
        self._now, self._frame_s = now, frame_s
        self.blocks: deque[BlockTiming] = deque(maxlen=KEPT)
        self.frames = 0  # delivered so far
        self._audio_s: float | None = None
        self._sent_s: float | None = None
        self._first_s: float | None = None
        self._last_s: float | None = None

    def audio(self) -> None:
        """Audio was accepted."""
        self._audio_s = self._audio_s or self._now()

    def sent(self, index: int, pts: int) -> None:
        timing = BlockTiming(index, pts, self._now())
        self._sent_s = self._sent_s or timing.sent_s
        self.blocks.append(timing)

    def delivered(self, index: int, frames: int, first: int = 0, last: bool = True) -> None:
        """Frames of a block from its frame `first` on. last: none of it follow."""
        now_s = self._now()
        self._first_s, self._last_s = self._first_s or now_s, now_s
        self.frames += frames
        for timing in reversed(self.blocks):
            if timing.index == index:
                timing.first_s = timing.first_s or now_s
                timing.delivered_s = now_s if last else None
                timing.frames += frames
                timing.needed_s = max(timing.needed_s, now_s - timing.sent_s - first * self._frame_s)
                return

    @property
    def first_frame_s(self) -> float | None:
        """From the first accepted audio to the first delivered frame."""
        return None if self._first_s is None or self._audio_s is None else self._first_s - self._audio_s

    @property
    def fps(self) -> float | None:
        """Delivered frames over the time from the first sending to the last delivery."""
        if self._last_s is None or self._sent_s is None or self._last_s <= self._sent_s:
            return None
        return self.frames / (self._last_s - self._sent_s)
