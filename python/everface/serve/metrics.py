"""What `GET /metrics` shows, in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE  # noqa: F401 the route names it

SECONDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 4, 8)


class Metrics:
    """Thread-safe. A registry of its own, so that several servers fit into a process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.block = Histogram("everface_block_seconds", "A block in the pipeline, from sending to delivery", buckets=SECONDS, registry=registry)
        self.first_frame = Histogram(
            "everface_first_frame_seconds", "First audio of a live session to its first frame", buckets=SECONDS, registry=registry
        )
        self.underruns = Counter("everface_underruns", "Times that frames were not ready in time", registry=registry)
        self.refill_frames = Counter("everface_refill_frames", "Frames held from an interruption to the first frame after it", registry=registry)
        self.sessions = Counter("everface_sessions_opened", "Live sessions that were admitted", registry=registry)
        self.refused = Counter("everface_sessions_refused", "Live sessions that were refused: too many, or draining", registry=registry)
        self.renders = Counter("everface_renders", "Renders that ended, by how", ["status"], registry=registry)
        self.requests = Counter("everface_requests", "HTTP requests, by status code", ["code"], registry=registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is asked whenever it is read."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
