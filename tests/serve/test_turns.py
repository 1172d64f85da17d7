"""A burst of requests takes turns with all else that the event loop does, and with the requests of other addresses."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from everface.serve.guard import BUSY, Guard
from everface.serve.metrics import Metrics
from everface.serve.settings import Limits, ServeSettings

RATE = 10.0  # requests a second: twice as many at once


class App:
    """Notes who asked, and at which turn of the loop."""

    def __init__(self) -> None:
        self.turn, self.asked = 0, list[tuple[str, int]]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append((scope["client"][0], self.turn))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def count(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)


async def _asked(addresses: list[str]) -> list[tuple[str, int]]:
    app = App()
    guard = Guard(app, ServeSettings(limits=Limits(requests_per_s=RATE)), Metrics())

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    scopes = [
        {"type": "http", "method": "GET", "path": "/healthz", "query_string": b"", "headers": [(b"host", b"localhost")], "client": (address, 1)}
        for address in addresses
    ]
    counting = asyncio.create_task(app.count())
    await asyncio.gather(*(guard(scope, receive, send) for scope in scopes))
    counting.cancel()
    return app.asked


def test_the_loop_turns_between_two_requests() -> None:
    turns = [turn for _, turn in asyncio.run(_asked(["a"] * 20))]
    assert len(turns) == 20 and all(after > before for before, after in pairwise(turns))


def test_other_addresses_wait_for_few_requests_of_a_busy_one() -> None:
    most = int(2 * RATE)
    few = int(most * (1 - BUSY))  # before it is a busy one
    asked = [address for address, _ in asyncio.run(_asked(["a"] * most + ["b"] * 3))]
    assert asked.count("a") == most and asked.count("b") == 3
    assert max(n for n, address in enumerate(asked) if address == "b") < few + 1 + 2 * 3
