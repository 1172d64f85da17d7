"""A pipeline of stages: messages in at the front, replies out at the end, never more blocks in flight than it is deep."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Self

from everface.core.errors import Unavailable
from everface.runtime.messages import Block, Cancelled, Closed, CloseSession, Failure, Message, Opened, OpenSession, Reply
from everface.runtime.signal import Signal

MOST_CONTROL = 16  # openings and closings whose replies are still to come: the last channel has room for these besides blocks


class PipelineLost(Exception):
    """A stage is gone, and all that was in flight: `recover` brings the pipeline back, without its sessions."""


class Pipeline(ABC):
    """Counts blocks between send and receive. One thread calls `send`, `receive` and `recover`; `close` may come from any other.

    `signal` is set when a reply arrives and when the pipeline is lost; whoever leaves work for the caller may set it too.
    """

    def __init__(self, depth: int):
        self.depth = depth  # most blocks in flight
        self.in_flight = 0
        self.signal = Signal()
        self._sessions = 0
        self._unanswered = 0  # openings and closings
        self._lock = threading.Lock()

    def new_session_id(self) -> int:
        """A number that no session of this pipeline had before, whichever scheduler opened it. Thread-safe."""
        with self._lock:
            self._sessions += 1
            return self._sessions

    def room(self) -> int:
        """Blocks that may be sent now."""
        return self.depth - self.in_flight

    def control_room(self) -> int:
        """Openings and closings that may be sent now. With more, a stage could wait for room for their replies while the caller waits in `send`."""
        return MOST_CONTROL - self._unanswered

    def send(self, message: Message) -> None:
        """Pass a message to the first stage. RuntimeError for a block beyond the depth, an opening or a closing beyond MOST_CONTROL: ask room() or
        control_room() first. Raises PipelineLost."""
        if isinstance(message, Block) and self.room() <= 0:
            raise RuntimeError(f"block {message.index} is one more than the {self.depth} this pipeline may hold")
        control = isinstance(message, OpenSession | CloseSession)
        if control and self.control_room() <= 0:
            raise RuntimeError(f"{type(message).__name__} is one more than the {MOST_CONTROL} that may wait for a reply")
        self._count(isinstance(message, Block), control)
        try:
            self._send(message)
        except BaseException:
            self._count(-isinstance(message, Block), -control)
            raise

    def receive(self) -> Reply | None:
        """The next reply, in order, or None when there is none yet. Raises PipelineLost."""
        reply = self._receive()
        if isinstance(reply, Block):
            self._count(-(not reply.more))
        else:
            of_block = isinstance(reply, Cancelled) or (isinstance(reply, Failure) and reply.index >= 0)
            self._count(-of_block, -(not of_block and isinstance(reply, Opened | Closed | Failure)))
        return reply

    def recover(self) -> list[str]:
        """Bring back what is lost; returns the names of the stages that were restarted. Raises Unavailable if that cannot be."""
        raise Unavailable("this pipeline cannot be brought back: start it again")

    def _count(self, blocks: int, control: int = 0) -> None:
        with self._lock:
            self.in_flight += blocks
            self._unanswered += control

    def _nothing_is_under_way(self) -> None:
        """The stages are new, or have forgotten everything."""
        with self._lock:
            self.in_flight = self._unanswered = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End every stage. Blocks in flight are lost. May be called twice."""

    @abstractmethod
    def _send(self, message: Message) -> None: ...

    @abstractmethod
    def _receive(self) -> Reply | None: ...
