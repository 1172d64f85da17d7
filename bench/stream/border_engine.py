"""An engine whose model takes no time: `python -m bench.stream.border_engine SOCKET HEIGHT WIDTH`. And a session of the same model in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.stream.sleepers import MODEL, ROLES, SleepSession

from everface.core.config import Deployment
from everface.engine.protocol import OpenRequest
from everface.engine.server import Engine, listen
from everface.live.session import LiveSession
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline


@contextmanager
def instant_scheduler(height: int, width: int) -> Iterator[Scheduler]:
    """The roles run in this process and return frames at once."""
    pipeline = start_pipeline(place(ROLES, "inline"), MODEL, {"ms": 0.0, "size": [height, width]}, Deployment())
    scheduler = Scheduler(pipeline, 4)
    try:
        yield scheduler
    finally:
        scheduler.close()


def open_live(scheduler: Scheduler, idle: bool = False, paced: bool = False, outbox_s: float = 2.0) -> LiveSession:
    return LiveSession(scheduler.open_session(SleepSession()).wait_open(), idle=idle, paced=paced, outbox_s=outbox_s)


def main(path: str, height: int, width: int) -> None:
    with instant_scheduler(height, width) as scheduler:

        def opener(request: OpenRequest, outbox_s: float) -> tuple[LiveSession, tuple[int, int]]:
            return open_live(scheduler, request.idle, request.paced, outbox_s), (height, width)

        Engine(opener, fps=25).serve(listen(Path(path)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
