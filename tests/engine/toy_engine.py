"""An engine over the toy model, as a process: `python -m tests.engine.toy_engine --socket PATH`, or `--fd N`; `--stages 2`: in processes."""

from __future__ import annotations

import argparse
import signal
import socket
from pathlib import Path
from types import FrameType

from tests.engine.listener import Listener
from tests.runtime import toy

from everface.core.config import Deployment
from everface.engine.protocol import OpenRequest
from everface.engine.server import Engine, listen
from everface.live.session import LiveSession
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline


class Stopped(BaseException):
    pass


def stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--stages", default="inline", help="processes")
    args = parser.parse_args()
    pipeline = start_pipeline(place(toy.roles_of(2), args.stages), toy.MODEL, toy.SPEC, Deployment())
    scheduler = Scheduler(pipeline, 16)

    def open_session(request: OpenRequest, outbox_s: float) -> tuple[LiveSession, tuple[int, int]]:
        session = (scheduler.open_session(Listener(Path(request.image).name)) if "listens" in request.image else toy.open_at(scheduler)).wait_open()
        live = LiveSession(session, idle=request.idle, paced=request.paced, playback_hz=request.playback_hz, outbox_s=outbox_s)
        return live, (8, 8)

    engine = Engine(open_session, 25)
    signal.signal(signal.SIGTERM, stop)
    try:
        if args.socket:
            engine.serve(listen(args.socket))
        else:
            engine.serve_owner(socket.socket(fileno=args.fd))
    except Stopped:
        pass
    finally:
        engine.stop(5.0)
        scheduler.close()


if __name__ == "__main__":
    main()
