"""The faces of the session contract: sessions in this process and in an engine, read in each way. Every contract test runs against each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.runtime import toy

from everface.client.engine_client import EngineClient, EngineSession
from everface.core.config import Deployment
from everface.live.events import LiveEvent
from everface.live.session import LiveSession
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline

Until = Callable[[list[LiveEvent]], bool]


@contextmanager
def live_in_process(model: toy.ToySession | None = None, **options: Any) -> Iterator[LiveSession]:
    """A live session over a toy model in this process."""
    pipeline = start_pipeline(place(toy.roles_of(2), "inline"), toy.MODEL, toy.SPEC, Deployment())
    scheduler = Scheduler(pipeline)
    try:
        with LiveSession(scheduler.open_session(model or toy.ToySession(), 10.0).wait_open(), **options) as session:
            yield session
    finally:
        scheduler.close()


def read_sync(session: LiveSession | EngineSession, until: Until, timeout_s: float = 60.0) -> list[LiveEvent]:
    events: list[LiveEvent] = []
    end_s = time.monotonic() + timeout_s
    while not until(events):
        assert time.monotonic() < end_s, f"only {len(events)} events came"
        event = session.read(0.1)
        if event is not None:
            events.append(event)
    return events


def read_async(session: LiveSession | EngineSession, until: Until, timeout_s: float = 60.0) -> list[LiveEvent]:
    async def collect() -> list[LiveEvent]:
        events: list[LiveEvent] = []
        async with asyncio.timeout(timeout_s):
            async for event in session:
                events.append(event)
                if until(events):
                    break
        return events

    return asyncio.run(collect())


@contextmanager
def live_in_engine(engine: EngineClient, **options: Any) -> Iterator[EngineSession]:
    """The same through libeverface."""
    with engine.open_live("toy", **options) as session:
        yield session


FACES = {"sync": read_sync, "async": read_async}
