"""When is a stage late? Pure bookkeeping over times that others measure, so that it runs as well on virtual time.

A stage is hung if nothing was cancels of it for HANG_S, or four times the 99th percentile of its blocks if that is longer; and if a block
has been worked on for so long. Openings, and blocks before enough of them were measured, get the deployment's timeout instead.
"""

from __future__ import annotations

from collections import deque

HANG_S = 1.8
TIMES_P99 = 4.0
KEPT = 256  # block times a stage
ENOUGH = 16  # of them make a percentile; before that the first, slow ones of a warm-up would be taken for the rule


class Watchdog:
    """One stage. Times are seconds on any one clock."""

    def __init__(self, name: str, timeout_s: float):
        self.name, self.timeout_s = name, timeout_s
        self.seconds: deque[float] = deque(maxlen=KEPT)
        self._heard_s: float | None = None  # None: not watched, the stage is still being built
        self._entered_s: float | None = None
        self._what = ""

    def begin(self, now_s: float) -> None:
        """The stage is up, and idle."""
        self._heard_s, self._entered_s = now_s, None

    def rest(self) -> None:
        """Watchdog no longer."""
        self._heard_s = self._entered_s = None

    def on_cancel(self, now_s: float) -> None:
        """Any sign of life."""
        if self._heard_s is not None:
            self._heard_s = now_s

    def enter(self, now_s: float, what: str) -> None:
        self.on_cancel(now_s)
        self._entered_s, self._what = now_s, what

    def leave(self, now_s: float) -> None:
        self.on_cancel(now_s)
        if self._entered_s is not None and self._what.startswith("block"):
            self.seconds.append(now_s - self._entered_s)
        self._entered_s = None

    @property
    def p99_s(self) -> float | None:
        """Of the last blocks; None before there are enough."""
        if len(self.seconds) < ENOUGH:
            return None
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(0.99 * len(self.seconds)))]

    @property
    def limit_s(self) -> float:
        """How long a block may take."""
        p99_s = self.p99_s
        return self.timeout_s if p99_s is None else min(self.timeout_s, max(HANG_S, TIMES_P99 * p99_s))

    def late(self, now_s: float) -> str | None:
        """Why the stage must be taken for hung, if it must."""
        if self._heard_s is None:
            return None
        silent_s = now_s - self._heard_s
        if silent_s > max(HANG_S, TIMES_P99 * (self.p99_s or 0.0)):
            return f"gave no sign of life for {silent_s:.1f} s"
        if self._entered_s is not None:
            limit_s = self.limit_s if self._what.startswith("block") else self.timeout_s
            if now_s - self._entered_s > limit_s:
                return f"has worked on {self._what} for more than {limit_s:.1f} s"
        return None
