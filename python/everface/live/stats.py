"""What a live session counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LiveStats:
    """Counters since the session opened, and the state now."""

    frames: int
    idle_frames: int
    held_frames: int  # that were due and missing: the last one was shown instead
    underruns: int  # times that frames were, one or more in a row
    dropped_frames: int  # a slow reader did not take them in time
    queued_s: float  # of accepted audio that was not shown yet
    block_ms: float | None  # median time of a block in the pipeline
    first_frame_s: float | None
    level: int  # of the ladder now, 0: full quality
    level_changes: int
    repeated_frames: int  # frames that stood for more than one, by the ladder
    refill_frames: int = 0  # the last one shown again from an interruption to the first frame after it
