"""A server on a free port of this machine, in a thread, over a toy model or a small one."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
from tests.runtime import toy
from websockets.sync.client import ClientConnection, connect

from everface.core.config import Deployment
from everface.live.session import LiveSession
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline
from everface.serve.backend import state_of
from everface.serve.server import Server, listen
from everface.serve.settings import Limits, ServeSettings

TOKEN = "0123456789abcdefABCDEF"


class ToyBackend:
    """Live sessions over a toy model; `sleep_s`: what a role takes for a block, `spec`: more for roles."""

    def __init__(self, sleep_s: float = 0.0, placement: str = "inline", **spec: Any) -> None:
        self._state, self.in_flight, self.fps = "ready", 0, 25
        spec = {**toy.SPEC, "sleep_s": sleep_s, **spec}
        self.pipeline = start_pipeline(place(toy.roles_of(2), placement), toy.MODEL, spec, Deployment(placement, timeout_s=60.0))
        self._scheduler = Scheduler(self.pipeline, 16)
        self.opened: list[LiveSession] = []

    @property
    def state(self) -> str:
        return state_of(self._state, self._scheduler)

    @state.setter
    def state(self, state: str) -> None:
        self._state = state

    @property
    def failure(self) -> Any:
        return self._scheduler.failure

    def load(self) -> None:
        pass

    def open_live(self, image: Any, stream: Any, **options: Any) -> LiveSession:
        live = LiveSession(toy.open_at(self._scheduler).wait_open(), **options)
        self.opened.append(live)
        return live

    def close(self) -> None:
        self._scheduler.close()


class Host:
    """A running server."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port, self.service = server, port, server.service
        self.loop: asyncio.AbstractEventLoop | None = None
        token = server.settings.token
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=self.headers, timeout=30)

    def socket(self, **options: Any) -> ClientConnection:
        options = {"additional_headers": self.headers, "max_size": None, "compression": None} | options
        return connect(f"ws://127.0.0.1:{self.port}/v1/avatar/stream", **options).__enter__()  # closed by the test, or with the server

    def asking(self, **start: Any) -> ClientConnection:
        """A connection that has asked for a session in JPEG and PCM, without idle motion."""
        socket = self.socket()
        socket.send(json.dumps({"type": "start", "format": "jpeg", "idle": False, "paced": False} | start))
        return socket

    def started(self, **start: Any) -> ClientConnection:
        """A session of this kind."""
        socket = self.asking(**start)
        assert next_event(socket)["type"] == "started"
        return socket

    def wait(self, done: Any, timeout_s: float = 60.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end_s
            time.sleep(0.02)


@contextmanager
def hosted(backend: Any = None, token: str | None = None, limits: Limits | None = None, push_to: tuple[str, ...] = ()) -> Iterator[Host]:
    settings = ServeSettings(port=0, token=token, limits=limits or Limits(requests_per_s=1e6), push_to=push_to)  # tests ask often
    listening = listen(settings.host, 0)
    server = Server(settings, cast(Any, backend or ToyBackend()))
    host = Host(server, listening.getsockname()[1])

    async def main() -> None:
        host.loop = asyncio.get_running_loop()
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        host.wait(lambda: server.started)
        yield host
    finally:
        host.http.close()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def next_event(socket: ClientConnection, *types: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """The next JSON message, of these types where some are named."""
    end_s = time.monotonic() + timeout_s
    while True:
        message = socket.recv(max(0.01, end_s - time.monotonic()))
        if isinstance(message, str) and (event := json.loads(message)) and (not types or event["type"] in types):
            return event


def end_of(socket: ClientConnection, timeout_s: float = 60.0) -> tuple[dict[str, Any] | None, int, str]:
    """Read until it is closed: the fatal error event, the close code, and the reason."""
    from websockets.exceptions import ConnectionClosed

    fatal = None
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            message = socket.recv(max(0.01, end_s - time.monotonic()))
        except ConnectionClosed as closed:
            frame = closed.rcvd
            return fatal, frame.code if frame else 1006, frame.reason if frame else ""
        if isinstance(message, str) and json.loads(message).get("fatal"):
            fatal = json.loads(message)
