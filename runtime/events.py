"""What a viewer gets of a session: frames, and what happened to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FrameBlock:
    """Finished frames, and the accepted sample that the first of them shows."""

    frames_THW3: torch.Tensor  # uint8, finished; on the host, or where Deployment.frames says
    pts: int
    revision: int
    index: int


@dataclass(frozen=True)
class Segment:
    """The one result of an revision's sound: samples begin..end were accepted, those before `shown` were handed out as frames."""

    revision: int
    begin: int
    end: int
    shown: int
    interrupted: bool


@dataclass(frozen=True)
class Recovering:
    """A stage failed; frames stop until Recovered. Nothing is asked of the viewer."""

    reason: str


@dataclass(frozen=True)
class Recovered:
    """Frames flow again from where they stopped; so many blocks were made a second time."""

    seconds: float
    again: int


Event = Segment | Recovering | Recovered
