"""The caller's own audio, kept until the video frames that it belongs to are given out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from everface.live.events import LiveSegmentEnd


@dataclass(eq=False)
class Segment:
    """One segment of audio, from its first push to end_segment. Positions are samples of the model's rate since the session opened."""

    number: int
    rate_hz: int
    begin: int  # position of its first sample
    model_hz: int
    pieces: deque[np.ndarray] = field(default_factory=deque[np.ndarray])  # [S, C], from `dropped` on
    pushed: int = 0  # samples of the caller's
    dropped: int = 0  # of them given out already
    model_samples: int = 0  # what they became at the model's rate
    ended: bool = False

    @property
    def end(self) -> int:
        """Position behind its last sample."""
        return self.begin + self.model_samples

    def own(self, position: int) -> int:
        """The caller's samples before a position."""
        return max(0, (position - self.begin) * self.rate_hz // self.model_hz)

    def result(self, unread: int | None = None, interrupted: bool = False) -> LiveSegmentEnd:
        """`unread`: position of the first frame that was given out and nobody has taken."""
        shown = min(self.dropped, self.pushed)
        shown = shown if unread is None else min(shown, self.own(unread))
        return LiveSegmentEnd(self.number, self.pushed / self.rate_hz, shown / self.rate_hz, interrupted)

    def add(self, samples_SC: np.ndarray) -> None:
        self.pieces.append(samples_SC)
        self.pushed += len(samples_SC)

    def take(self, until: int) -> np.ndarray:
        """The caller's samples from the last call up to sample `until` of the segment; fewer where there are no more."""
        out: list[np.ndarray] = []
        while self.pieces and self.dropped < until:
            piece = self.pieces[0]
            part = piece[: until - self.dropped]
            out.append(part)
            self.dropped += len(part)
            if len(part) == len(piece):
                self.pieces.popleft()
            else:
                self.pieces[0] = piece[len(part) :]
        return np.concatenate(out) if out else np.zeros((0, 1), np.int16)


class Playback:
    """Segments in order, the one being pushed last. Not thread-safe."""

    def __init__(self, model_hz: int) -> None:
        self.model_hz = model_hz
        self.segments: deque[Segment] = deque()
        self._count = 0

    def open(self, rate_hz: int, begin: int) -> Segment:
        self._count += 1
        segment = Segment(self._count, rate_hz, begin, self.model_hz)
        self.segments.append(segment)
        return segment

    def within(self, begin: int, end: int) -> Segment | None:
        """The first segment with audio at positions begin..end."""
        return next((s for s in self.segments if s.begin < end and begin < s.end), None)

    def slice(self, begin: int, end: int, silence_hz: int, channels: int) -> tuple[np.ndarray, int]:
        """The audio of positions begin..end: [S, C] and its rate. Segments shorter than that are filled up with silence."""
        segment = self.within(begin, end)
        if segment is None:
            return np.zeros(((end - begin) * silence_hz // self.model_hz, channels), np.int16), silence_hz
        rate = segment.rate_hz
        lead = max(0, (segment.begin - begin) * rate // self.model_hz)
        samples = segment.take(min(segment.own(end), segment.pushed) if end < segment.end else segment.pushed)
        length = max(len(samples) + lead, (end - begin) * rate // self.model_hz)
        out = np.zeros((length, samples.shape[1] if len(samples) else channels), samples.dtype)
        out[lead : lead + len(samples)] = samples
        return out, rate

    def finished(self, shown: int) -> list[Segment]:
        """Segments that ended and are shown to their end; they are forgotten."""
        done: list[Segment] = []
        while self.segments and self.segments[0].ended and self.segments[0].end <= shown:
            done.append(self.segments.popleft())
        return done

    def drop(self) -> list[Segment]:
        """An interruption: all of them."""
        dropped = list(self.segments)
        self.segments.clear()
        return dropped
