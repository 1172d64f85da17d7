"""`everface engine`: one avatar, served until it is told to stop."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from everface.avatar.avatar import Avatar
from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.engine.connection import Opener
from everface.engine.protocol import OpenRequest
from everface.engine.server import Engine, listen
from everface.live.session import LiveSession


@dataclass(frozen=True)
class EngineJob:
    """What to serve, and where: at a socket's path, or to the process at the other end of a descriptor."""

    socket: Path | None = None
    descriptor: int | None = None
    weights: Path | None = None
    lora: Path | None = None
    sampler: str = StreamConfig.sampler
    deployment: Deployment = field(default_factory=Deployment)
    drain_s: float = 20.0
    version: str = ""  # of everface


def run_engine(job: EngineJob) -> None:
    """Serve until an interruption, or until the owner's end of the descriptor is closed. Raises EverfaceError."""
    if (job.socket is None) == (job.descriptor is None):
        raise BadInput("an engine needs one place to be reached at: give --socket PATH or --fd N")
    listener, path = listen(job.socket) if job.socket else None, job.socket
    owner = _owner(job.descriptor) if job.descriptor is not None else None
    try:
        with Avatar(job.weights, job.lora, job.deployment) as avatar:
            avatar.start(StreamConfig(sampler=job.sampler))
            engine = Engine(_opener(avatar, job.sampler), avatar.format.fps, job.version)
            try:
                if listener:
                    print(f"everface engine: listening at {job.socket}", flush=True)
                    engine.serve(listener)
                elif owner:
                    engine.serve_owner(owner)
            finally:
                _remove(path)
                path = None  # from now on another engine may listen there
                log.info("the engine stops: %d clients", engine.connections)
                engine.stop(job.drain_s if listener else 0.0)
    finally:
        if listener:
            _remove(path)
            listener.close()


def _owner(descriptor: int) -> socket.socket:
    try:
        owner = socket.socket(fileno=descriptor)
        owner.set_inheritable(False)
        return owner
    except OSError as error:
        raise BadInput(f"descriptor {descriptor} is no socket ({error.strerror}): give the number of one") from None


def _remove(path: Path | None) -> None:
    if path:
        with suppress(OSError):
            path.unlink()


def _opener(avatar: Avatar, sampler: str) -> Opener:
    lock = threading.Lock()

    def open_session(request: OpenRequest, outbox_s: float) -> tuple[LiveSession, tuple[int, int]]:
        if bool(request.width) != bool(request.height):
            raise BadInput("a size needs a width and a height: set both or none")
        size = (request.height, request.width) if request.height else None
        stream = StreamConfig(seed=request.seed, size=size, sampler=sampler, prompt=request.prompt)
        with lock:  # reading an image takes all threads of torch anyway
            image_3HW = avatar.fit(Path(request.image), stream)
        options = {"idle": request.idle, "paced": request.paced, "playback_hz": request.playback_hz, "outbox_s": outbox_s}
        height, width = image_3HW.shape[-2:]
        return avatar.open_live(image_3HW, stream, **options), (height, width)

    return open_session
