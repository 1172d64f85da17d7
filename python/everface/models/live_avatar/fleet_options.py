"""Pipelines of Live Avatar that a fleet can be made of: on how many GPUs, how fast, and how many live sessions each serves."""

from __future__ import annotations

from typing import NamedTuple

from everface.core.config import FPS
from everface.models.live_avatar.forecast import step_cost_table
from everface.models.live_avatar.step_costs import MEASURED_SESSIONS
from everface.runtime.planning.fleet import overload

MOST_OVERLOAD = 0.01  # share of time in which more sessions of a pipeline may be active than it serves in real time


class PipelineOption(NamedTuple):
    """One row."""

    name: str
    gpus: int
    fps: float
    measured: bool

    def places(self, idle_share: float = 0.0) -> int:
        """Live sessions at 25 frames a second. `idle_share`: of a session's time, in which nothing is computed for it."""
        at_once = int(self.fps / FPS + 1e-9)
        places = at_once
        while at_once and idle_share and places < 64 and overload(places + 1, 1 - idle_share, at_once) <= MOST_OVERLOAD:
            places += 1
        return places


def pipeline_options(steps: int, devices: int) -> list[PipelineOption]:
    """Measured sessions on one H200, and of each larger number the fastest forecast from steps that were measured. Raises BadInput."""
    found = [PipelineOption(f"{s.configuration}, {s.steps} steps", 1, s.fps, True) for s in MEASURED_SESSIONS]
    rows = [row for row in step_cost_table(steps, devices) if row[1]["measured_ms"] is not None]
    for index in range(1, devices):
        name, _, forecasts = max(rows, key=lambda row: row[2][index].fps)
        found.append(PipelineOption(f"{name}, {steps} steps", index + 1, forecasts[index].fps, False))
    return found
