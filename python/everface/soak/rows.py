"""What is measured of a long session, and the bars that it is held to."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil
import torch

from everface.core.errors import Unavailable
from everface.soak.watchers import Watched, slope

WARM_UP = 0.1  # share of a run
EDGE = 0.1  # of the rows after it: memory is the lowest of so many at either end, since a look sees freed memory that goes back once a minute (core.memory)
MOST_GROWTH = 0.01  # of the resident memory, after that
LEAST_GROWTH_MB = 8.0  # that is no growth: an allocator's granularity
MOST_SLOPE = 1.0  # ms of distance between audio and video in 1,000 s
LEAST_SLOPE_S = 500.0  # of media before a slope is told from rounding


@dataclass(frozen=True)
class Row:
    """One look. `descriptors` and `threads` are of the session's process and its children; `av_ms` is the mean since the look before."""

    media_s: float
    wall_s: float
    rss_mb: float
    gpu_mb: float
    descriptors: int
    threads: int
    av_ms: float
    gaps: int
    disorder: int
    underruns: int
    segments: int
    recoveries: int


def look(process: psutil.Process, seen: Watched, wall_s: float) -> Row:
    family = [process, *process.children(recursive=True)]
    gpu_mb = torch.cuda.memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
    return Row(
        round(seen.media_s, 2), round(wall_s, 2), round(sum(p.memory_info().rss for p in family) / 1e6, 1), round(gpu_mb, 1),
        sum(p.num_fds() for p in family), sum(p.num_threads() for p in family), round(seen.mean_av_ms(), 2), seen.gaps, seen.disorder,
        seen.underruns, seen.segments, seen.recoveries,
    )  # fmt: skip


@dataclass(frozen=True)
class SoakReport:
    """The rows after the warm-up, judged."""

    rows: list[Row]

    @property
    def settled(self) -> list[Row]:
        return self.rows[min(len(self.rows) - 1, int(WARM_UP * len(self.rows))) :]

    @property
    def memory_mb(self) -> tuple[float, float]:
        """Resident, after the warm-up and at the end."""
        looks = [row.rss_mb for row in self.settled]
        edge = max(1, int(EDGE * len(looks)))
        return min(looks[:edge]), min(looks[-edge:])

    @property
    def growth_mb(self) -> float:
        first, last = self.memory_mb
        return last - first

    @property
    def av_slope(self) -> float:
        """Milliseconds in 1,000 s."""
        return slope([(row.media_s, row.av_ms) for row in self.settled])

    def faults(self) -> list[str]:
        first, last = self.settled[0], self.settled[-1]
        found = {
            f"memory grew by {self.growth_mb:.1f} MB": self.growth_mb > max(MOST_GROWTH * self.memory_mb[0], LEAST_GROWTH_MB),
            f"device memory grew by {last.gpu_mb - first.gpu_mb:.1f} MB": last.gpu_mb > first.gpu_mb,
            f"descriptors grew from {first.descriptors} to {last.descriptors}": last.descriptors > first.descriptors,
            f"threads grew from {first.threads} to {last.threads}": last.threads > first.threads,
            f"audio drifts from video by {self.av_slope:.2f} ms in 1,000 s": last.media_s >= LEAST_SLOPE_S and abs(self.av_slope) > MOST_SLOPE,
            f"{last.gaps} frames were not in their place": last.gaps > 0,
            f"{last.disorder} events were out of order": last.disorder > 0,
        }
        return [fault for fault, there in found.items() if there]

    def summary(self) -> str:
        last, faults = self.rows[-1], self.faults()
        what = (
            f"{last.media_s:.0f} s of media in {last.wall_s:.0f} s: memory {self.growth_mb:+.1f} MB after the warm-up, audio and video "
            f"{self.av_slope:+.2f} ms in 1,000 s, {last.gaps} gaps, {last.disorder} out of order, {last.segments} segments, {last.underruns} underruns"
        )
        return f"{what}; {'; '.join(faults) if faults else 'all bars held'}"


def write_rows(path: Path, rows: list[Row]) -> None:
    """As CSV. Raises Unavailable."""
    try:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written ({error.strerror}): free some space, or choose another place") from None
