"""Speed and memory of a stream while it is made.

fps: frames / seconds from the open session to the last frame in hand, decoding included; the paper's definition counts from the pipeline's
start. first_frame_s: from there to the first block. cold_first_frame_s: with loading the model. block_ms: intervals between blocks. deadline
miss: a block that came later after its predecessor than the predecessor takes to play.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import psutil

from everface.genbench.windows import BEGINS_S, WINDOW_S

MEMORY_S = 60.0  # of video before growth of memory can be told from warming up
EVERY_S = 5.0  # of video between two looks at memory
SETTLED_S = 20.0  # of video that are left out at its beginning


class SpeedMeter:
    """Stamps of one clip of `fps` frames per second. `loading_since`: time.perf_counter() before the model was loaded, for the first clip of a process."""

    def __init__(self, process: psutil.Process, fps: int, loading_since: float | None = None) -> None:
        self.process, self.fps, self.loading_since = process, fps, loading_since
        self.began = self.ended = time.perf_counter()
        self.stamps: list[tuple[float, int]] = []  # when a block came, frames until then
        self.memory: list[tuple[float, float]] = []  # seconds of video, resident MB of the process and its children

    def opened(self) -> None:
        """The session is open: count from here."""
        self.began = time.perf_counter()

    def add_block(self, frames: int) -> None:
        """A block is in hand."""
        done = (self.stamps[-1][1] if self.stamps else 0) + frames
        self.stamps.append((time.perf_counter(), done))
        if not self.memory or done / self.fps - self.memory[-1][0] >= EVERY_S:
            self.memory.append((done / self.fps, self._resident_mb()))

    def finished(self) -> None:
        self.ended = self.stamps[-1][0] if self.stamps else time.perf_counter()

    def measures(self) -> dict[str, float]:
        """What is known; a key without a value is left out."""
        if not self.stamps:
            return {}
        frames = self.stamps[-1][1]
        found = {"fps": frames / max(self.ended - self.began, 1e-9), "first_frame_s": self.stamps[0][0] - self.began}
        if self.loading_since is not None:
            found["cold_first_frame_s"] = self.stamps[0][0] - self.loading_since
        gaps_ms = [1e3 * (b[0] - a[0]) for a, b in pairwise(self.stamps)]
        if gaps_ms:
            found |= {f"block_ms_p{p}": float(np.percentile(gaps_ms, p)) for p in (50, 95, 99)}
            plays_ms = [1e3 * (b[1] - a[1]) / self.fps for a, b in pairwise([(0.0, 0), *self.stamps[:-1]])]
            found["deadline_misses"] = float(np.mean([gap > play for gap, play in zip(gaps_ms, plays_ms)]))
        found["rss_mb"] = self._resident_mb()
        return found | growth(self.memory)

    def windows(self) -> dict[str, dict[str, float]]:
        """FPS, block intervals and memory in each of the windows that quality is measured in, by the window's first second."""
        found = dict[str, dict[str, float]]()
        for begin in BEGINS_S:
            inside = [stamp for stamp in self.stamps if begin <= stamp[1] / self.fps <= begin + WINDOW_S]
            resident = [mb for at, mb in self.memory if begin <= at <= begin + WINDOW_S]
            if len(inside) > 2:
                (first_s, first), (last_s, last) = inside[0], inside[-1]
                gaps_ms = [1e3 * (b[0] - a[0]) for a, b in pairwise(inside)]
                found[f"{begin:g}"] = {
                    "fps": (last - first) / max(last_s - first_s, 1e-9), "block_ms_p50": float(np.percentile(gaps_ms, 50)),
                    "block_ms_p99": float(np.percentile(gaps_ms, 99)), **({"rss_mb": resident[-1]} if resident else {}),
                }  # fmt: skip
        return found

    def _resident_mb(self) -> float:
        family = [self.process, *self.process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family) / 1e6


def growth(memory: list[tuple[float, float]]) -> dict[str, float]:
    """The slope of memory by least squares, MB per 1,000 s of video, without its first SETTLED_S; {} for clips under MEMORY_S."""
    settled = [point for point in memory if point[0] >= SETTLED_S]
    if len(settled) < 3 or settled[-1][0] < MEMORY_S:
        return {}
    seconds, mb = np.array(settled).T
    return {"memory_mb_per_1000s": float(1000 * np.polyfit(seconds, mb, 1)[0])}
