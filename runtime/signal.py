"""Wakes the scheduler: set by whoever leaves work for it, waited for by the scheduler alone."""

from __future__ import annotations

import contextlib
import threading


class Signal:
    """An event that is cleared by the wait it ends, so that no `set` between two waits is lost. Thread-safe, for one that waits.

    A lock that is free when the signal is set. Unlike a threading.Event, Ctrl-C cannot interrupt it halfway and leave it locked.
    """

    def __init__(self) -> None:
        self._clear = threading.Lock()
        self._clear.acquire()

    def set(self) -> None:
        if self._clear.locked():
            with contextlib.suppress(RuntimeError):  # another thread has set it just now
                self._clear.release()

    def wait(self, timeout_s: float) -> bool:
        """Until `set` is called, or was called since the last wait. Returns False after `timeout_s` seconds without it."""
        return self._clear.acquire(timeout=timeout_s)
