"""Decides when a stage hangs. It only does arithmetic on times that others measure, so it runs on virtual time too.

A stage hangs if it gave no sign of life for HANG_S, or for four times the 99th percentile of its block times if that is longer;
and if it has worked on one block for that long. Openings, and blocks before enough of them were measured, get the deployment's
timeout instead.
"""

from __future__ import annotations

from collections import deque

HANG_S = 1.8
TIMES_P99 = 4.0
KEPT = 256  # block times per stage
ENOUGH = 16  # of them make a percentile; fewer would take the slow blocks of a warm-up for the rule
BLOCK = "block"  # descriptions of work on a block begin with it


class Watchdog:
    """Of one stage. All times are in seconds on one clock of the caller's choice."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self.block_times_s: deque[float] = deque(maxlen=KEPT)
        self._alive_s: float | None = None  # last sign of life; None: not watched
        self._began_s: float | None = None  # the work under way
        self._work = ""

    def start(self, now_s: float) -> None:
        """Watch: the stage is connected and idle."""
        self._alive_s, self._began_s = now_s, None

    def stop(self) -> None:
        """Watch no longer."""
        self._alive_s = self._began_s = None

    def alive(self, now_s: float) -> None:
        """Note a sign of life."""
        if self._alive_s is not None:
            self._alive_s = now_s

    def begin_work(self, now_s: float, work: str) -> None:
        """The stage works on something from now on. `work` describes it, for a block as in "block 7"."""
        self.alive(now_s)
        self._began_s, self._work = now_s, work

    def end_work(self, now_s: float) -> None:
        self.alive(now_s)
        if self._began_s is not None and self._work.startswith(BLOCK):
            self.block_times_s.append(now_s - self._began_s)
        self._began_s = None

    def silent_s(self, now_s: float) -> float:
        """Since the last sign of life; 0 of a stage that is not watched."""
        return 0.0 if self._alive_s is None else now_s - self._alive_s

    @property
    def p99_s(self) -> float | None:
        """Of the last block times; None before there are enough."""
        if len(self.block_times_s) < ENOUGH:
            return None
        return sorted(self.block_times_s)[min(len(self.block_times_s) - 1, int(0.99 * len(self.block_times_s)))]

    @property
    def limit_s(self) -> float:
        """How long a block may take."""
        p99_s = self.p99_s
        return self.timeout_s if p99_s is None else min(self.timeout_s, max(HANG_S, TIMES_P99 * p99_s))

    def hang_reason(self, now_s: float) -> str | None:
        """Why the stage counts as hung; None if it does not."""
        if self._alive_s is None:
            return None
        silent_s = self.silent_s(now_s)
        if silent_s > max(HANG_S, TIMES_P99 * (self.p99_s or 0.0)):
            return f"gave no sign of life for {silent_s:.1f} s"
        if self._began_s is not None:
            limit_s = self.limit_s if self._work.startswith(BLOCK) else self.timeout_s
            if now_s - self._began_s > limit_s:
                return f"has worked on {self._work} for more than {limit_s:.1f} s"
        return None
