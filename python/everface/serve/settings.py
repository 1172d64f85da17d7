"""What the server is started with: where it listens, what it runs, and every limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.core.loopback import is_loopback

LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class Limits:
    """What one client may use. Beyond a limit, a request is refused with a sentence, and a live session is closed with one."""

    sessions: int = 4  # live sessions at once
    jobs: int = 8  # renders that wait
    requests_per_s: float = 100.0  # of one address, twice as many at once
    upload_bytes: int = 32 << 20  # of one request's image and audio together
    image_pixels: int = 16_000_000
    audio_s: float = 600.0  # of decoded audio in one render
    idle_s: float = 300.0  # a live session without a message of its client
    lifetime_s: float = 3600.0  # of a live session
    start_s: float = 10.0  # from the connection to its start message
    ahead_s: float = 120.0  # of audio that waits on the server
    stall_s: float = 10.0  # that a reader may not read
    outbox_bytes: int = 2 << 20  # that wait for a reader
    results_bytes: int = 1 << 30  # of finished videos
    results_s: float = 3600.0  # until a finished video is deleted
    drain_s: float = 20.0  # for running sessions and renders, once the server is told to end


@dataclass(frozen=True)
class ServeSettings:
    """Raises BadInput for a place that may not be listened at without a token."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    weights: Path | None = None
    lora: Path | None = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    deployment: Deployment = field(default_factory=Deployment)
    limits: Limits = field(default_factory=Limits)
    push_to: tuple[str, ...] = ()  # addresses and folders that sessions may be pushed to: those that begin so
    version: str = "unknown"  # of everface, for the description of the routes

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise BadInput(f"port {self.port} does not exist: choose one from 1 to 65535, or 0 for any that is free")
        if self.token is not None and (len(self.token) < LEAST_TOKEN or not self.token.isascii() or not self.token.isalnum()):
            raise BadInput(f"the token is too weak or holds other signs: use {LEAST_TOKEN} or more letters and digits, as openssl rand -hex 16 prints")
        if self.token is None and not is_loopback(self.host):
            raise BadInput(f"{self.host} can be reached from other machines: pass --token (or set EVERFACE_TOKEN), or listen at 127.0.0.1")
