"""The messages of a pipeline. The runtime reads their headers only; tensors are opaque to it and belong to the model.

Forward, into the first stage:   OpenSession, Block, CloseSession, Cancel, Stop
Out of the last stage (replies): Block, Cancelled, Failure, Opened, Closed
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

Tensors = dict[str, torch.Tensor]
Params = dict[str, int | float | str | bool]
NEVER = 1 << 60  # as a revision: nothing of the session is wanted until it is opened again


@dataclass(frozen=True)
class OpenSession:
    """Open a session on every stage. `tensors` and `params` are the model's initial state of it."""

    session: int
    tensors: Tensors
    params: Params = field(default_factory=dict[str, int | float | str | bool])
    parts: bool = False  # the frames of a block are wanted in parts, as they are made


@dataclass
class Block:
    """One block of video in flight, or a part of its frames.

    `x` is what the roles transform: opaque until the last role, then uint8 frames [frames, H, W, 3].
    `condition` is whatever else travels with the block: the model's inputs on the way in, its outputs on the way out.
    """

    session: int
    revision: int  # grows with every interruption and every resend; stages drop blocks of an older revision
    index: int  # block number since the session opened, never reset
    pts: int  # position of the block's first audio sample in the session, in samples
    frames: int  # video frames to keep, counted from its first
    x: torch.Tensor
    condition: Tensors = field(default_factory=dict[str, torch.Tensor])
    last: bool = False  # the segment ends with this block
    first: int = 0  # number of x's first frame within the block: that of a part, behind the last role
    more: bool = False  # other parts of this block follow


@dataclass(frozen=True)
class CloseSession:
    """Close a session on every stage and free its caches."""

    session: int


@dataclass(frozen=True)
class Cancel:
    """Blocks of `session` with a revision below `revision` are no longer wanted. Overtakes the blocks queued in its way."""

    session: int
    revision: int


@dataclass(frozen=True)
class Cancelled:
    """Takes the place of a dropped block to the end of the pipeline, so that the count of blocks in flight stays right."""

    session: int
    revision: int
    index: int


@dataclass(frozen=True)
class Failure:
    """Takes the place of a block that could not be computed, or, with index -1, of a session that could not be opened."""

    session: int
    revision: int
    index: int
    role: str
    reason: str


@dataclass(frozen=True)
class Opened:
    """Every stage has opened the session."""

    session: int


@dataclass(frozen=True)
class Closed:
    """No stage holds anything of the session any more."""

    session: int


@dataclass(frozen=True)
class Stop:
    """Shut the pipeline down: a stage passes it on and returns."""


Message = OpenSession | Block | CloseSession | Cancel | Cancelled | Failure | Opened | Closed | Stop
Reply = Block | Cancelled | Failure | Opened | Closed
UNBUFFERED = (Cancel, Stop)  # need no credit, so they reach a stage whose channel is full


def reply_of(message: Message) -> Reply | None:
    """What the caller of the pipeline gets for a message that has passed the last stage; None: nothing."""
    if isinstance(message, OpenSession):
        return Opened(message.session)
    if isinstance(message, CloseSession):
        return Closed(message.session)
    return message if isinstance(message, Block | Cancelled | Failure | Opened | Closed) else None
