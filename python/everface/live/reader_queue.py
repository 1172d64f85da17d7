"""What waits for a session's reader, in order."""

from __future__ import annotations

from collections import deque

from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, VideoFrame
from everface.live.playback import Segment


class ReaderQueue:
    """`most`: video and audio frames that may wait. With `lossy`, the oldest of them go when there are more; an event never does. Not thread-safe."""

    def __init__(self, most: int, lossy: bool) -> None:
        self._most, self._lossy = most, lossy
        self._events: deque[LiveEvent] = deque()
        self._media = 0
        self._segments: dict[int, Segment] = {}  # whose results wait here
        self.dropped = 0  # video frames that went

    def __len__(self) -> int:
        return len(self._events)

    @property
    def full(self) -> bool:
        return self._media >= self._most

    def put(self, event: LiveEvent) -> None:
        self._events.append(event)
        self._media += isinstance(event, VideoFrame | AudioFrame)
        while self._lossy and self._media > self._most:
            at = next(i for i, e in enumerate(self._events) if isinstance(e, VideoFrame | AudioFrame))
            self.dropped += isinstance(self._events[at], VideoFrame)
            self._media -= 1
            del self._events[at]

    def put_result(self, segment: Segment) -> None:
        """The end of a segment that was given out completely."""
        self._segments[segment.number] = segment
        self.put(segment.result())

    def take(self) -> LiveEvent:
        event = self._events.popleft()
        self._media -= isinstance(event, VideoFrame | AudioFrame)
        if isinstance(event, LiveSegmentEnd):
            self._segments.pop(event.segment, None)
        return event

    def drop_media(self) -> int | None:
        """An interruption: no frame of the past is wanted. Returns the position of the first that was dropped; a segment that it takes a part
        of counts as interrupted too."""
        unread = next((e.pts for e in self._events if isinstance(e, VideoFrame | AudioFrame)), None)
        self._events = deque(self._again(e, unread) for e in self._events if not isinstance(e, VideoFrame | AudioFrame))
        self._media = 0
        return unread

    def _again(self, event: LiveEvent, unread: int | None) -> LiveEvent:
        segment = self._segments.get(event.segment) if isinstance(event, LiveSegmentEnd) else None
        if segment is None or unread is None or segment.end <= unread:
            return event
        return self._segments.pop(segment.number).result(unread, interrupted=True)
