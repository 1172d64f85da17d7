"""Computes the conditions of blocks on a thread of its own, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from everface.runtime.messages import Tensors

Job = tuple[Future[Tensors], Callable[[], Tensors]]


class Preparer:
    """The scheduler adds at most one job per session. `done` is called on the thread after each job. Thread-safe.

    Not a ThreadPoolExecutor: Python waits at exit until that has ended its work, however long that takes.
    """

    def __init__(self, done: Callable[[], None]):
        self._done = done
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="everface prepare", daemon=True)
        self._thread.start()

    def submit(self, compute: Callable[[], Tensors]) -> Future[Tensors]:
        """The result of `compute`, later. After `close` it never comes."""
        future: Future[Tensors] = Future()
        self._jobs.put((future, compute))
        return future

    def close(self, timeout_s: float) -> bool:
        """Drop what waits and end the thread; False if its work takes longer than `timeout_s`. May be called twice."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed:
            future, compute = job
            complete(future, compute)
            self._done()


def complete(future: Future[Tensors], compute: Callable[[], Tensors]) -> None:
    """Compute here and now; an exception becomes the future's."""
    try:
        future.set_result(compute())
    except Exception as error:
        future.set_exception(error)
