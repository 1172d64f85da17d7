"""What waits for a session's reader, in order."""

from __future__ import annotations

from collections import deque

from everface.live.events import AudioFrame, LiveEvent, VideoFrame


class ReaderQueue:
    """`most`: video and audio frames that may wait. With `lossy`, the oldest of them go when there are more; an event never does. Not thread-safe."""

    def __init__(self, most: int, lossy: bool) -> None:
        self._most, self._lossy = most, lossy
        self._events: deque[LiveEvent] = deque()
        self._media = 0
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

    def take(self) -> LiveEvent:
        event = self._events.popleft()
        self._media -= isinstance(event, VideoFrame | AudioFrame)
        return event

    def drop_media(self) -> None:
        """An interruption: no frame of the past is wanted."""
        self._events = deque(e for e in self._events if not isinstance(e, VideoFrame | AudioFrame))
        self._media = 0
