"""Renders that were asked for: one runs, a bounded number waits, results stay in a temporary folder for a bounded time."""

from __future__ import annotations

import contextlib
import queue
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from everface.core.errors import EverfaceError, Unavailable
from everface.core.log import log
from everface.serve.metrics import Metrics
from everface.serve.settings import Limits
from everface.serve.uploads import sentence

QUEUED, RUNNING, DONE, FAILED = "queued", "in_progress", "completed", "failed"
TICK_S = 0.5


class QueueFull(Unavailable):
    """As many jobs wait as may."""


class Aborted(Exception):
    """The job was deleted while it ran."""


@dataclass(eq=False)
class VideoJob:
    """One render. Its folder holds what was uploaded, and then the video."""

    id: str
    folder: Path
    image: Path
    prompt: str
    seed: int | None
    consent: str = ""
    created_s: float = field(default_factory=time.time)
    status: str = QUEUED
    progress: int = 0  # percent
    error: str | None = None
    remark: str = ""  # about the image, as `Session.remark`
    ended_s: float | None = None  # wall time, to be shown
    kept_since_s: float = 0.0
    bytes: int = 0
    aborted: threading.Event = field(default_factory=threading.Event)

    @property
    def audio(self) -> Path:
        return self.folder / "audio"

    @property
    def video(self) -> Path:
        return self.folder / "video.mp4"


Render = Callable[[VideoJob], None]  # raises EverfaceError, Aborted


class Jobs:
    """Thread-safe. `render` runs on the one worker thread."""

    def __init__(self, render: Render, limits: Limits, metrics: Metrics) -> None:
        self._render, self._limits, self._metrics = render, limits, metrics
        self._root = Path(tempfile.mkdtemp(prefix="everface-videos-"))
        self._jobs: dict[str, VideoJob] = {}
        self._waiting: queue.Queue[VideoJob] = queue.Queue()
        self._lock = threading.Lock()
        self._taking = 0  # jobs whose uploads are being saved and checked
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="everface renders", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def place(self) -> Iterator[tuple[str, Path]]:
        """An id, and a folder for its uploads, of a job that is submitted within; if that fails, the folder goes. Raises QueueFull when too many wait."""
        with self._lock:
            if self._stopped or self._count(QUEUED) + self._taking >= self._limits.jobs:
                raise QueueFull(f"{self._limits.jobs} videos wait already: try again later")
            self._taking += 1
        name = f"video_{secrets.token_hex(12)}"
        folder = self._root / name
        try:
            folder.mkdir()
            yield name, folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            with self._lock:
                self._taking -= 1

    def submit(self, job: VideoJob) -> None:
        """Within `place`. Raises QueueFull when no more are rendered."""
        with self._lock:
            if self._stopped:
                raise QueueFull("the server is ending: try again later")
            self._jobs[job.id] = job
            self._waiting.put(job)

    def get(self, name: str) -> VideoJob | None:
        return self._jobs.get(name)

    def all(self) -> list[VideoJob]:
        """The newest first."""
        with self._lock:
            return list(self._jobs.values())[::-1]

    def delete(self, name: str) -> bool:
        """Forget it, and end it if it runs. False if there is none."""
        with self._lock:
            job = self._jobs.pop(name, None)
        if job is None:
            return False
        job.aborted.set()
        if job.status != RUNNING:  # else the worker does it
            shutil.rmtree(job.folder, ignore_errors=True)
        return True

    @property
    def waiting(self) -> int:
        with self._lock:
            return self._count(QUEUED)

    @property
    def busy(self) -> bool:
        with self._lock:
            return bool(self._count(QUEUED) + self._count(RUNNING))

    def close(self) -> None:
        """End what runs, and delete everything."""
        self._stopped = True
        for job in self.all():
            job.aborted.set()
        self._thread.join(10.0)
        shutil.rmtree(self._root, ignore_errors=True)

    def _count(self, status: str) -> int:
        return sum(job.status == status for job in self._jobs.values())

    def _run(self) -> None:
        while not self._stopped:
            self._expire()
            try:
                job = self._waiting.get(timeout=TICK_S)
            except queue.Empty:
                continue
            with self._lock:
                if job.aborted.is_set():
                    continue
                job.status = RUNNING
            self._metrics.renders.labels(self._work(job)).inc()

    def _work(self, job: VideoJob) -> str:
        """Returns how it ended."""
        try:
            self._render(job)
            job.bytes = job.video.stat().st_size
            job.progress, status = 100, DONE
        except Aborted:
            status = "aborted"
        except EverfaceError as error:
            job.error, status = sentence(error, job.image, job.audio, job.video), FAILED
        except Exception:
            log.exception("a video could not be rendered")
            job.error, status = "this video ended by a bug of everface: the server's log says more", FAILED
        for upload in (job.audio, job.folder / "image"):
            upload.unlink(missing_ok=True)
        with self._lock:
            job.ended_s, job.kept_since_s = time.time(), time.monotonic()
            if not job.aborted.is_set():
                job.status = status
                return status
        shutil.rmtree(job.folder, ignore_errors=True)
        return "aborted"

    def _expire(self) -> None:
        """Delete the oldest results beyond the limits."""
        ended = [job for job in self.all()[::-1] if job.ended_s is not None]
        size = sum(job.bytes for job in ended)
        many = len(ended) - 1000
        for number, job in enumerate(ended):
            old = time.monotonic() - job.kept_since_s > self._limits.results_s
            if old or size > self._limits.results_bytes or number < many:
                size -= job.bytes
                self.delete(job.id)
