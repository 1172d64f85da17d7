"""Iterating over what a session gives out, and closing it at the end of a `with` block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol, Self

from everface.live.events import LiveEvent

POLL_S = 0.2


class EventIteration(Protocol):
    """`for event in session` and `async for event in session`, until it is finished; `with session`."""

    def read(self, timeout_s: float) -> LiveEvent | None: ...

    def close(self) -> None: ...

    @property
    def finished(self) -> bool: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[LiveEvent]:
        while not self.finished:
            event = self.read(POLL_S)
            if event is not None:
                yield event

    async def __aiter__(self) -> AsyncIterator[LiveEvent]:
        while not self.finished:
            event = await asyncio.to_thread(self.read, POLL_S)
            if event is not None:
                yield event
