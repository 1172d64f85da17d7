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
from everface.serve.settings import ServeSettings

WARM_UP_S = 120.0
IMAGES = {path.stem: path for path in sorted(IMAGE.parent.glob("*.png"))}  # the bundled ones, by name


class Backend:
    """Thread-safe. `state`: loading, ready, failed or closed."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.state = "loading"
        self.failure: EverfaceError | None = None
        self._avatar: Avatar | None = None
        self._lock = threading.Lock()

    def load(self) -> None:
        """Load the checkpoint, start the stages, and make the first block, which is slower than the rest. Sets `state`."""
        try:
            began_s = time.monotonic()
            avatar = Avatar(self.settings.weights, self.settings.lora, self.settings.deployment)
            with self._lock:
                if self.state == "closed":
                    return
                self._avatar = avatar
            avatar.start(self.settings.stream)
            with avatar.open_live(IMAGE, self.settings.stream) as session:
                while not isinstance(session.read(1.0), VideoFrame) and time.monotonic() - began_s < WARM_UP_S:
                    pass
            self.state = "ready" if self.state == "loading" else self.state
            log.info("ready after %.1f s", time.monotonic() - began_s)
        except EverfaceError as error:
            if self.state == "loading":
                self.failure, self.state = error, "failed"

    def open_live(self, image: Path, stream: StreamConfig, **options: Any) -> LiveSession:
        """Blocks while the image is encoded. Raises BadInput, Unavailable."""
        if self._avatar is None or self.state != "ready":
            raise self.failure or Unavailable(f"the model is {self.state}: try again later")
        return self._avatar.open_live(image, stream, **options)

    @property
    def in_flight(self) -> int:
        """Blocks in the pipeline now."""
        scheduler = self._avatar.scheduler if self._avatar else None
        return scheduler.pipeline.in_flight if scheduler else 0

    @property
    def fps(self) -> int | None:
        """Frame rate of the model; None while it is loaded."""
        return self._avatar.format.fps if self._avatar else None

    def close(self) -> None:
        """Within seconds; sessions still open fail."""
        with self._lock:
            self.state = "closed"
            avatar, self._avatar = self._avatar, None
        if avatar is not None:
            avatar.close()
