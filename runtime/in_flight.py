"""The blocks of a session that were prepared, sent or delivered lately, or first: enough to send them again when the stages lost their state.

The stages hold of a session its caches, and the latest state update. None of it is copied off the devices. After a loss the last
delivered blocks, and the first if the model wants them, are run once more, their frames thrown away, to restore the caches, and then whatever was never delivered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from everface.runtime.messages import Block, Cancelled, Failure, Tensors
from everface.runtime.model import BlockFormat, SessionModel, Window


@dataclass(eq=False)
class PreparedBlock:
    """A window of audio with its conditions, ready to be sent. `x` and `update` are set when it is first sent."""

    index: int
    window: Window
    condition: Tensors = field(default_factory=dict[str, torch.Tensor])
    x: torch.Tensor | None = None
    update: Tensors | None = None  # the state update in force
    failures: int = 0
    shown: int = 0  # frames that were delivered, of a block that comes in parts
    delivered: bool = False  # all of them


@dataclass(eq=False)
class SentBlock:
    """A block in flight."""

    block: PreparedBlock
    revision: int
    carries_update: bool
    opening: int  # how often the session had been opened
    stale: bool = False  # its frames are not wanted: it was interrupted, or is being sent again


class InFlight:
    """Blocks of one session in three queues: waiting, sent, history. Bounded by the session's buffer and the pipeline's depth.

    For the scheduler's thread only.
    """

    def __init__(self, format: BlockFormat) -> None:
        self.waiting: deque[PreparedBlock] = deque()
        self.sent: deque[SentBlock] = deque()
        self.history: deque[PreparedBlock] = deque(maxlen=format.history)
        self.first: list[PreparedBlock] = []  # delivered blocks of the beginning, which stay
        self.update: Tensors = {}  # in force for blocks that are first sent from now on; {} is the initial state
        self.recomputed = 0  # blocks that the last resend put back, those in flight and delivered ones
        self.openings = 0  # times that the stages lost the session
        self._initial = self.update
        self.format = format
        self._stages_have: Tensors | None = self.update  # after all that is in flight; None: not known
        self._revision = 0  # grows with interruptions and resends
        self._next = 0

    @property
    def next_index(self) -> int:
        """Of the next block to prepare."""
        return self.waiting[-1].index + 1 if self.waiting else self._next

    def merge_update(self, update: Tensors) -> None:
        self.update = {**self.update, **update}

    def send(self, session: int, model: SessionModel) -> Block:
        """The first waiting block as a message; it is in flight from now on."""
        prepared = self.waiting.popleft()
        if prepared.x is None:
            prepared.x = model.initial_x(prepared.index, 0)
        if prepared.update is None:
            prepared.update = self.update
        condition, carries = dict(prepared.condition), prepared.update is not self._stages_have
        if carries:
            known = self._stages_have or {}
            condition.update({name: x for name, x in prepared.update.items() if known.get(name) is not x})
            self._stages_have = prepared.update
        window = prepared.window
        block = Block(session, self._revision, prepared.index, window.pts, window.frames, prepared.x, condition, window.last)
        self.sent.append(SentBlock(prepared, self._revision, carries, self.openings))
        self._next = max(self._next, prepared.index + 1)
        return block

    def match(self, reply: Block | Cancelled | Failure) -> SentBlock:
        """The block that `reply` is about; unless that is a part of it, it is no longer in flight. RuntimeError if replies are out of order."""
        due = self.sent[0] if self.sent else None
        if due is None or (reply.index, reply.revision) != (due.block.index, due.revision):
            expected = f"{due.block.index} of {reply.session}" if due else "none"
            raise RuntimeError(f"block {reply.index} of session {reply.session} came where {expected} was due")
        return due if isinstance(reply, Block) and reply.more else self.sent.popleft()

    def delivered(self, block: PreparedBlock) -> None:
        block.delivered = True
        if len(self.first) < self.format.first_history:
            self.first.append(block)
        else:
            self.history.append(block)

    def cancel(self) -> int:
        """An interruption: nothing that waits or is in flight is wanted. Returns the new revision."""
        self._revision += 1
        self.waiting.clear()
        if self.format.first_frames is not None:
            self._next = max(self._next, 1)  # only the first turn begins with a block of another length: callers can count on it
        if any(sent.carries_update and not sent.stale for sent in self.sent):
            self._stages_have = None  # where its block is dropped half-way, the stages behind have not seen it
        for sent in self.sent:
            sent.stale = True
        return self._revision

    @property
    def replaying(self) -> bool:
        """Whether blocks that were delivered are still to be run again: the stages do not have yet what later blocks attend to."""
        return any(block.delivered for block in self.waiting) or any(sent.block.delivered and not sent.stale for sent in self.sent)

    def resend(self, failed: SentBlock | None = None, *, lost: bool = False) -> None:
        """The stages lost the session. `failed`: the block that showed it, of those in flight. lost: the replies to what is in flight are too."""
        self._revision += 1
        self.openings += 1
        flown = [*([failed] if failed else []), *self.sent]
        again = [*self.first, *self.history, *(sent.block for sent in flown if not sent.stale and not sent.block.delivered)]
        self.recomputed = len(again)
        self.waiting = deque([*again, *(block for block in self.waiting if block not in again and not block.delivered)])
        for sent in self.sent:
            sent.stale = True
        if lost:
            self.sent.clear()
        self._stages_have = self._initial

    def clear(self) -> None:
        self.waiting.clear()
        self.first.clear()
        self.history.clear()
