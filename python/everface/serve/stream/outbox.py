"""What waits for a reader: filled by a session's thread, emptied by the event loop. Bounded in bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Message = bytes | dict[str, Any]
EVENT_BYTES = 256  # that an event counts for


class SlowReader(Exception):
    """The reader did not read for too long."""


class Outbox:
    """`put` is called from any thread but the loop's, `post` and `get` from the loop's."""

    def __init__(self, most_bytes: int, stall_s: float) -> None:
        self._most, self._stall_s = most_bytes, stall_s
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._stale: Callable[[Message], bool] = lambda _: False
        self._closed = False
        self._room = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()

    def put(self, message: Message) -> bool:
        """Wait for room, and for `stall_s` at most, then raise SlowReader. Returns False once it is closed."""
        with self._room:
            end_s = time.monotonic() + self._stall_s
            while self._bytes > self._most and not self._closed:
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise SlowReader
                self._room.wait(left_s)
            if self._closed:
                return False
            self._add(message)
        self._loop.call_soon_threadsafe(self._filled.set)
        return True

    def post(self, event: dict[str, Any]) -> None:
        """An event, at once: there are few of them. Dropped when it is closed, or when a client that does not read causes thousands."""
        with self._room:
            if not self._closed and self._bytes < 2 * self._most:
                self._add(event)
        self._filled.set()

    def close(self) -> None:
        """`get` still returns what is there, then None. From any thread."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._loop.call_soon_threadsafe(self._filled.set)

    async def get(self) -> Message | None:
        """The next message; None when it is closed and empty."""
        while True:
            with self._room:
                if self._messages:
                    message = self._messages.popleft()
                    self._bytes -= _size(message)
                    self._room.notify_all()
                    return message
                if self._closed:
                    return None
                self._filled.clear()
            await self._filled.wait()

    def drop(self, stale: Callable[[Message], bool]) -> None:
        """An interruption: what is stale goes, and so does what comes of it later, since a frame may be on its way to `put`."""
        with self._room:
            self._stale = stale
            self._messages = deque(m for m in self._messages if not stale(m))
            self._bytes = sum(_size(m) for m in self._messages)
            self._room.notify_all()

    @property
    def waiting_bytes(self) -> int:
        return self._bytes

    def _add(self, message: Message) -> None:
        if not self._stale(message):
            self._messages.append(message)
            self._bytes += _size(message)


def _size(message: Message) -> int:
    return len(message) if isinstance(message, bytes) else EVENT_BYTES
