"""A client's audio on its way into its session: bounded in pieces, and nobody waits for what is not pushed any more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from everface.core.errors import Unavailable
from everface.live.session import LiveSession
from everface.serve.stream.pusher import Pusher

SAMPLE = np.zeros(1, np.int16).tobytes()


class Live:
    """Has room, until it is over."""

    def __init__(self) -> None:
        self.taken, self.over = 0, False

    def push_audio(self, samples_SC: np.ndarray, rate_hz: int) -> int:
        if self.over:
            raise Unavailable("the session is closed")
        self.taken += len(samples_SC)
        return len(samples_SC)


def pusher_of(live: Live) -> Pusher:
    return Pusher(cast(LiveSession, live), 16_000, 1, "<i2", 120.0, lambda _: None)


def test_messages_of_one_sample_become_few_pieces() -> None:
    async def run() -> None:
        live = Live()
        pusher = pusher_of(live)
        for _ in range(10_000):
            pusher.add(SAMPLE)
        assert len(pusher._waiting) == 3 and pusher.waiting_s == pytest.approx(10_000 / 16_000)
        running = asyncio.create_task(pusher.run())
        await asyncio.wait_for(pusher.drained(), 10.0)
        assert live.taken == 10_000
        running.cancel()

    asyncio.run(run())


def test_nobody_waits_for_a_session_that_is_over() -> None:
    async def run() -> None:
        live = Live()
        pusher = pusher_of(live)
        running = asyncio.create_task(pusher.run())
        live.over = True
        pusher.add(SAMPLE)
        with pytest.raises(Unavailable):
            await running
        await asyncio.wait_for(asyncio.gather(pusher.settled(), pusher.drained()), 10.0)
        with pytest.raises(Unavailable, match="is ending"):
            pusher.add(SAMPLE)

    asyncio.run(run())


def test_a_flood_of_messages_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket whose queue is full: `receive` returns at once, 2,000 times."""
    from everface.serve.stream import connection

    monkeypatch.setattr(connection, "MESSAGES_S", 50.0)
    messages = iter([{"type": "websocket.receive", "text": '{"type": "interrupt"}'}] * 2000)
    taken, turns = 0, 0

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def control(_: object) -> None:
        nonlocal taken
        taken += 1

    async def run() -> None:
        nonlocal turns
        service = SimpleNamespace(settings=SimpleNamespace(limits=None))
        stream = connection.StreamConnection(cast(Any, SimpleNamespace(receive=receive)), cast(Any, service))
        stream._session = cast(Any, SimpleNamespace(active=lambda: None, control=control, complain=print))
        receiving = asyncio.create_task(stream._receive())
        while turns < 40:
            turns += 1
            await asyncio.sleep(0.005)
        receiving.cancel()

    asyncio.run(run())
    assert turns == 40 and 100 <= taken < 200  # a burst of two seconds' worth, and then as many a second
