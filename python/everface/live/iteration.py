"""Iterating over what a session gives out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from everface.live.events import LiveEvent

POLL_S = 0.2


class EventIteration(Protocol):
    """`for event in session` and `async for event in session`, until it is finished."""

    def read(self, timeout_s: float) -> LiveEvent | None: ...

    @property
    def finished(self) -> bool: ...

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
