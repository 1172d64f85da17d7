"""`everface serve`: listens, and ends in order when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator

import uvicorn

from everface.core.errors import BadInput
from everface.core.standard_streams import print_output
from everface.core.threads import switch_quickly
from everface.serve.app import build_app
from everface.serve.backend import Backend
from everface.serve.protocol import Protocol
from everface.serve.service import LOAD_S, Service
from everface.serve.settings import ServeSettings

DEAD_MS = 20_000  # a connection whose other end takes nothing for so long is dropped by the system
PING_S = 15.0  # between a WebSocket's pings
PONG_S = LOAD_S + PING_S  # for the reply: while the model loads, nothing is read of a client that has sent something already. The system drops who is gone
POLL_S = 0.1


class Server(uvicorn.Server):
    """Ends by the first SIGTERM, SIGINT or SIGHUP once sessions and renders are over, or `drain_s` is; by the second at once."""

    def __init__(self, settings: ServeSettings, backend: Backend) -> None:
        self.app = build_app(settings, backend)
        self.service: Service = self.app.state.service
        self.settings, self.backend = settings, backend
        super().__init__(
            uvicorn.Config(
                self.app, http=Protocol, log_config=None, access_log=False, lifespan="on", server_header=False, ws="websockets-sansio", ws_ping_interval=PING_S,
                ws_ping_timeout=PONG_S, ws_max_size=settings.limits.upload_bytes, ws_per_message_deflate=False, h11_max_incomplete_event_size=32_768,
                limit_concurrency=256, timeout_keep_alive=10, timeout_graceful_shutdown=5,
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which end sessions at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self.end)
        watch = loop.create_task(self._watch_backend())
        try:
            yield
        finally:
            watch.cancel()
            for number in signals:
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """Admit nobody; end when all is done."""
        if self.service.draining:
            self.should_exit = True
            return
        self.service.drain()
        self._drain = asyncio.get_running_loop().create_task(self._end_in_order())

    async def _end_in_order(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.limits.drain_s):
                while self.service.busy and not self.should_exit:
                    await asyncio.sleep(POLL_S)
        self.should_exit = True
        await self.app.state.sessions.close()

    async def _watch_backend(self) -> None:
        while self.backend.state == "loading":
            await asyncio.sleep(POLL_S)
        if self.backend.state == "failed":
            self.should_exit = True


def serve(settings: ServeSettings, show: bool = False) -> None:
    """Run until a signal ends it. `show`: open the page in a browser. Raises EverfaceError."""
    switch_quickly()
    listening = listen(settings.host, settings.port)
    backend = Backend(settings)
    server = Server(settings, backend)
    address = page_address(settings, listening)
    print_output(f"everface listens at {address}{'?token=TOKEN' if settings.token else ''} (Ctrl-C ends it)")
    if show:
        page = f"{address}?token={settings.token}" if settings.token else address
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()  # a browser in a terminal would not return
    run(server, listening)
    if backend.failure:
        raise backend.failure


def run(server: Server, listening: socket.socket) -> None:
    """Until the server has ended; it closes the socket."""
    loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(server.serve(sockets=[listening]))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises BadInput."""
    try:
        (family, kind, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_MS)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise BadInput(f"nothing can listen at {host} port {port} ({error.strerror}): choose another --host or --port") from None
    return listening


def page_address(settings: ServeSettings, listening: socket.socket) -> str:
    host = "localhost" if settings.host in ("127.0.0.1", "::1", "0.0.0.0", "::") else settings.host
    return f"http://{host}:{listening.getsockname()[1]}/"
