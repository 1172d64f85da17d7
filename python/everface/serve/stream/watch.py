"""Watches one live session: tells its client once a second how it does, and ends it when it is idle or old."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from everface.live.session import LiveSession
from everface.serve.metrics import Metrics
from everface.serve.settings import Limits
from everface.serve.stream.outbox import Outbox
from everface.serve.stream.refusal import Refused

PERIOD_S = 1.0
KEPT = 256  # frames whose time of showing is remembered until their block is reported


class Watch:
    """`shown` is called from the session's thread, all else from the event loop."""

    def __init__(self, live: LiveSession, outbox: Outbox, metrics: Metrics, limits: Limits) -> None:
        self._live, self._outbox, self._metrics, self._limits = live, outbox, metrics, limits
        self._began_s = self._active_s = time.monotonic()
        self._shown: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._reported = -1  # index of the last block that was reported
        self._underruns = self._refill_frames = 0
        self._first = False

    def active(self) -> None:
        """The client sent something."""
        self._active_s = time.monotonic()

    def shown(self, pts: int) -> None:
        self._shown.append((pts, time.monotonic()))

    async def run(self, end: Callable[[Refused], None]) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            now_s = time.monotonic()
            if now_s - self._began_s > self._limits.lifetime_s:
                end(Refused(1008, "lifetime", f"the session is {self._limits.lifetime_s:g} s old: open another"))
            elif now_s - self._active_s > self._limits.idle_s:
                end(Refused(1008, "idle", f"nothing came for {self._limits.idle_s:g} s: open another session when there is something to say"))
            self._outbox.post(self._stats())

    def _stats(self) -> dict[str, Any]:
        stats = self._live.stats()
        self._metrics.underruns.inc(stats.underruns - self._underruns)
        self._metrics.refill_frames.inc(stats.refill_frames - self._refill_frames)
        self._underruns, self._refill_frames = stats.underruns, stats.refill_frames
        if stats.first_frame_s is not None and not self._first:
            self._first = True
            self._metrics.first_frame.observe(stats.first_frame_s)
        return {
            "type": "stats", "time_s": round(time.monotonic() - self._began_s, 3), "frames": stats.frames, "idle_frames": stats.idle_frames,
            "held_frames": stats.held_frames, "underruns": stats.underruns, "refill_frames": stats.refill_frames, "dropped_frames": stats.dropped_frames,
            "queued_s": round(stats.queued_s, 3), "block_ms": stats.block_ms, "first_frame_s": stats.first_frame_s,
            "unread_bytes": self._outbox.waiting_bytes, "blocks": self._blocks(),
        }  # fmt: skip

    def _blocks(self) -> list[dict[str, Any]]:
        """Blocks that are on the screen since the last report. Times are seconds since the session opened."""
        shown, blocks = dict(self._shown), []
        for block in list(self._live.timeline.blocks):
            if block.index > self._reported and block.first_s is not None and block.delivered_s is not None and block.pts in shown:
                self._reported = block.index
                self._metrics.block.observe(block.delivered_s - block.sent_s)
                times = {"sent_s": block.sent_s, "made_s": block.first_s, "shown_s": shown[block.pts]}
                blocks.append({"index": block.index, **{name: round(at_s - self._began_s, 3) for name, at_s in times.items()}})
        return blocks[-8:]
