"""Wakes the scheduler: set by whoever leaves work for it, waited for by the scheduler alone."""

from __future__ import annotations

import threading


class Signal:
    """An event that is cleared by the wait it ends, so that no `set` between two waits is lost. Thread-safe."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """Until `set` is called, or was called since the last wait. Returns False after `timeout_s` seconds without it."""
        found = self._event.wait(timeout_s)
        self._event.clear()
        return found
