"""What a caller gets from a session: blocks of video, and what happened to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class VideoBlock:
    """Consecutive video frames, and the accepted audio sample that the first of them shows. `index`: of the model's block that they are of; a session
    opened with `parts` may give several of one index."""

    frames_THW3: torch.Tensor  # uint8; on the host, or where Deployment.frames says
    pts: int  # samples since the session opened
    turn: int
    index: int


@dataclass(frozen=True)
class SegmentEnd:
    """The one result of a turn's audio: samples begin..end were accepted, those before `shown` were handed out as frames."""

    turn: int
    begin: int
    end: int
    shown: int
    interrupted: bool


@dataclass(frozen=True)
class Recovering:
    """A stage failed; frames stop until Recovered. The caller need not do anything."""

    reason: str


@dataclass(frozen=True)
class Recovered:
    """Frames continue where they stopped; so many blocks were computed a second time."""

    seconds: float
    recomputed: int


Event = SegmentEnd | Recovering | Recovered
