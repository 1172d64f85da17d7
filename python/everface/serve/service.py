"""What the routes share: settings, the backend, metrics, admission, and threads for what blocks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from everface.core.config import StreamConfig
from everface.core.errors import EverfaceError, Unavailable
from everface.core.memory import release_freed_memory
from everface.live.session import LiveSession
from everface.serve.metrics import Metrics
from everface.serve.settings import ServeSettings
from everface.serve.videos.jobs import Jobs

T = TypeVar("T")
LOAD_S = 120.0  # that a client waits for the model


class LiveSource(Protocol):
    """A Backend, or a test's."""

    @property
    def state(self) -> str: ...
    @property
    def failure(self) -> EverfaceError | None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def fps(self) -> int | None: ...
    def load(self) -> None: ...
    def open_live(self, image: Any, stream: StreamConfig, **options: Any) -> LiveSession: ...
    def close(self) -> None: ...


class Service:
    """Used from the event loop."""

    def __init__(self, settings: ServeSettings, backend: LiveSource) -> None:
        self.settings, self.backend, self.metrics = settings, backend, Metrics()
        self.draining = False
        self.sessions = 0
        self.jobs: Jobs | None = None
        self.warnings: set[Callable[[], None]] = set()  # what tells each live session's client that the server ends
        self._threads = ThreadPoolExecutor(2 * settings.limits.sessions + 4, "everface serve")
        self.metrics.watch("everface_sessions", "Live sessions now", lambda: self.sessions)
        self.metrics.watch("everface_blocks_in_flight", "Blocks in the pipeline now", lambda: backend.in_flight)
        self.metrics.watch("everface_ready", "1 when new sessions are admitted", lambda: self.ready)

    @property
    def ready(self) -> bool:
        return self.backend.state == "ready" and not self.draining

    @property
    def busy(self) -> bool:
        """Sessions or renders are not over."""
        return bool(self.sessions or (self.jobs and self.jobs.busy))

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A live session's place. Raises Unavailable when there is none."""
        most = self.settings.limits.sessions
        if self.draining or self.sessions >= most:
            self.metrics.refused.inc()
            reason = "the server is ending" if self.draining else f"{most} live sessions are open, which is the limit here"
            raise Unavailable(f"{reason}: try again later")
        self.sessions += 1
        self.metrics.sessions.inc()
        try:
            yield
        finally:
            self.sessions -= 1
            if not self.busy:
                with contextlib.suppress(RuntimeError):  # closed
                    self._threads.submit(release_freed_memory)

    def drain(self) -> None:
        """Admit nobody from now on."""
        self.draining = True
        for warn in list(self.warnings):
            warn()

    def stream(self, prompt: str, seed: int | None) -> StreamConfig:
        stream = self.settings.stream
        return dataclasses.replace(stream, prompt=prompt, seed=stream.seed if seed is None else seed)

    @property
    def refusal(self) -> EverfaceError:
        """Of what needs the model, while it is not ready."""
        state = "ending" if self.draining else self.backend.state
        return self.backend.failure or Unavailable(f"the server is {state}: try again later")

    async def loaded(self) -> bool:
        """Wait until the model is loaded, or LOAD_S is over."""
        end_s = time.monotonic() + LOAD_S
        while self.backend.state == "loading" and time.monotonic() < end_s:
            await asyncio.sleep(0.1)
        return self.backend.state == "ready"

    async def blocking(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run it on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **options))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
