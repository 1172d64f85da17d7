"""What a live session gives out, besides the runtime's Recovering and Recovered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from everface.runtime.events import Recovered, Recovering


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame. `pts` is its place in the stream, in samples of the model's rate, and `time_s` the same in seconds."""

    image_HW3: np.ndarray  # uint8 RGB
    pts: int
    time_s: float
    idle: bool  # no audio of the caller's belongs to it
    held: bool = False  # the last frame again: the next one was not ready in time, or fewer are made (QualityChange)


@dataclass(frozen=True, eq=False)
class AudioFrame:
    """The caller's own audio of the video frame before it; silence where there is none."""

    samples_SC: np.ndarray  # int16 or float32, as pushed; silence is int16
    rate_hz: int
    pts: int
    time_s: float


@dataclass(frozen=True)
class LiveSegmentEnd:
    """The one result of a segment of audio: how much of it was shown, of an interrupted one what was read. Seconds of the caller's audio."""

    segment: int
    pushed_s: float
    shown_s: float
    interrupted: bool


@dataclass(frozen=True)
class Underrun:
    """`frames` frames were not ready in time; the last one was held instead."""

    frames: int
    time_s: float


@dataclass(frozen=True)
class QualityChange:
    """The machine is slower than real time, or fast enough again. `level` 0 is full quality; `what` says how frames are made at this one."""

    level: int
    what: str
    time_s: float


LiveEvent = VideoFrame | AudioFrame | LiveSegmentEnd | Underrun | QualityChange | Recovering | Recovered
