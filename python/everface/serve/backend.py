"""The one avatar of the server, which live sessions and renders share. It is loaded in the background."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from everface.avatar.avatar import Avatar
from everface.avatar.demo import IMAGE
from everface.core.config import StreamConfig
from everface.core.errors import EverfaceError, Unavailable
from everface.core.log import log
from everface.live.events import VideoFrame
from everface.live.session import LiveSession
from everface.runtime.scheduler import Scheduler
from everface.serve.settings import ServeSettings

WARM_UP_S = 120.0
IMAGES = {path.stem: path for path in sorted(IMAGE.parent.glob("*.png"))}  # the bundled ones, by name


def state_of(state: str, scheduler: Scheduler | None) -> str:
    """That of a server which is in `state` as far as it knows, by what has become of its pipeline."""
    if state != "ready" or scheduler is None:
        return state
    return "failed" if scheduler.failure else "recovering" if scheduler.recovering else "ready"


class Backend:
    """Thread-safe."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self._state = "loading"
        self._failure: EverfaceError | None = None
        self._avatar: Avatar | None = None
        self._lock = threading.Lock()

    def load(self) -> None:
        """Load the checkpoint, start the stages, and make the first block, which is slower than the rest. Sets `state`."""
        try:
            began_s = time.monotonic()
            avatar = Avatar(self.settings.weights, self.settings.lora, self.settings.deployment)
            with self._lock:
                if self._state == "closed":
                    return
                self._avatar = avatar
            avatar.start(self.settings.stream)
            with avatar.open_live(IMAGE, self.settings.stream) as session:
                while not isinstance(session.read(1.0), VideoFrame) and time.monotonic() - began_s < WARM_UP_S:
                    pass
            self._state = "ready" if self._state == "loading" else self._state
            log.info("ready after %.1f s", time.monotonic() - began_s)
        except EverfaceError as error:
            if self._state == "loading":
                self._failure, self._state = error, "failed"

    @property
    def state(self) -> str:
        """loading, ready, recovering (a stage was lost), failed or closed."""
        return state_of(self._state, self._scheduler)

    @property
    def failure(self) -> EverfaceError | None:
        """Why it has failed: while it was loaded, or because the pipeline is lost for good."""
        return self._failure or (self._scheduler.failure if self._scheduler else None)

    def open_live(self, image: Path, stream: StreamConfig, **options: Any) -> LiveSession:
        """Blocks while the image is encoded. Raises BadInput, Unavailable."""
        avatar, state = self._avatar, self.state
        if avatar is None or state != "ready":
            raise self.failure or Unavailable(f"the model is {state}: try again later")
        return avatar.open_live(image, stream, **options)

    @property
    def in_flight(self) -> int:
        """Blocks in the pipeline now."""
        return self._scheduler.pipeline.in_flight if self._scheduler else 0

    @property
    def fps(self) -> int | None:
        """Frame rate of the model; None while it is loaded."""
        return self._avatar.format.fps if self._avatar else None

    def close(self) -> None:
        """Within seconds; sessions still open fail."""
        with self._lock:
            self._failure, self._state = self.failure, "closed"
            avatar, self._avatar = self._avatar, None
        if avatar is not None:
            avatar.close()

    @property
    def _scheduler(self) -> Scheduler | None:
        avatar = self._avatar
        return avatar.scheduler if avatar else None
