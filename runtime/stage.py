"""The roles of one device, run in order, and the messages that they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from everface.core.block import Block, Closing, Opening


@dataclass(frozen=True)
class Epoch:
    """Interruption: blocks of `session` older than `epoch` are worthless from now on. Overtakes the blocks in its way."""

    session: int
    epoch: int


@dataclass(frozen=True)
class Tombstone:
    """Stands for a dropped block to the end of the pipeline, so that the count in flight stays right."""

    session: int
    epoch: int
    index: int


@dataclass(frozen=True)
class Stop:
    """The pipeline ends: a stage hands it on and returns."""


Message = Opening | Block | Closing | Epoch | Tombstone | Stop
URGENT = (Epoch, Stop)  # need no credit, so they reach a stage whose hop is full


class Role(Protocol):
    """One denoising step, or the decoder. Keeps its own state per session; sees the blocks of a session in rising order.

    `close` also comes to a role that failed to open, or that came after it; nothing is freed then.
    """

    def open(self, opening: Opening) -> None: ...

    def run(self, block: Block) -> Block: ...

    def close(self, closing: Closing) -> None: ...


class Stage:
    """Runs messages through the roles of one device. `run` belongs to one thread; `hear` may be called from any other."""

    def __init__(self, roles: Mapping[str, Role]):
        self.roles = dict(roles)
        self._newest: dict[int, int] = {}  # session -> newest epoch heard of
        self._next: dict[int, int] = {}  # open session -> lowest block index that may still come

    def hear(self, notice: Epoch) -> None:
        """Take note of an interruption; a block being run is dropped before its next role."""
        self._newest[notice.session] = max(notice.epoch, self._newest.get(notice.session, 0))

    def run(self, message: Message) -> Message:
        """What to give to the next stage for `message`: a block run or dropped, anything else itself."""
        with torch.no_grad():
            if isinstance(message, Block):
                return self._run_block(message)
            if isinstance(message, Opening):
                self._next[message.session] = 0
                try:
                    for role in self.roles.values():
                        role.open(message)
                except BaseException:
                    self._close(Closing(message.session))
                    raise
            elif isinstance(message, Closing):
                self._close(message)
            elif isinstance(message, Epoch):
                self.hear(message)
            return message

    def _close(self, closing: Closing) -> None:
        if self._next.pop(closing.session, None) is not None:
            self._newest.pop(closing.session, None)
            for role in self.roles.values():
                role.close(closing)

    def _run_block(self, block: Block) -> Block | Tombstone:
        expected = self._next.get(block.session)
        if expected is None:
            raise RuntimeError(f"block {block.index} came for session {block.session}, which is not open on this stage")
        if block.index < expected:
            raise RuntimeError(f"block {block.index} of session {block.session} came after block {expected - 1}")
        self._next[block.session] = block.index + 1
        header = (block.session, block.epoch, block.index)
        for role in self.roles.values():
            if block.epoch < self._newest.get(block.session, 0):
                return Tombstone(*header)
            block = role.run(block)
        return block
