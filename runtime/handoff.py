"""A hop: messages forward, credits backward, so that a hop never holds more than its slots.

A giver blocks in `put` while all slots are taken; a slot is free again when the message has been taken. Epoch and Stop need
no slot. An Epoch is not queued: it is heard at once (`hear`), ahead of the blocks that wait. `abort` wakes whoever waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch

from everface.runtime import wire
from everface.runtime.stage import URGENT, Epoch, Message

SLOTS = 2
FORWARD, CREDIT = 1, 2  # gloo tags
EVER = timedelta(days=30)  # a receiving thread waits on its socket until something comes or the peer dies

Hear = Callable[[Epoch], None]


class Broken(RuntimeError):
    """The hop was aborted, its peer died, or it accepted nothing in time."""


class Group(Protocol):
    """What a hop needs of a ProcessGroupGloo. Both calls answer a work with wait(timedelta), which raises RuntimeError."""

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any: ...

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any: ...


class Giver(Protocol):
    """Upstream end of a hop."""

    def put(self, message: Message) -> None: ...

    def abort(self, reason: str = ...) -> None: ...


class Taker(Protocol):
    """Downstream end of a hop. `take` answers None when nothing came in time."""

    def take(self, timeout_s: float) -> Message | None: ...

    def wake(self) -> None: ...

    def abort(self, reason: str = ...) -> None: ...


class Queue:
    """What both kinds of hop share: received messages, a condition to wait on, and why the hop is broken."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: deque[Message] = deque()
        self._broken: str | None = None
        self._woken = False

    def wake(self) -> None:
        """Have a take that waits, or else the next one that would, answer None at once."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def abort(self, reason: str = "the hop was aborted") -> None:
        with self._changed:
            self._broken = self._broken or reason
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], timeout_s: float, wakes: bool = False) -> bool:
        """Wait, the condition held, until ready or broken; what was received before the hop broke can still be had."""
        if timeout_s > 0:
            self._changed.wait_for(lambda: ready() or self._broken is not None or (wakes and self._woken), timeout_s)
        if wakes:
            self._woken = False
        if not ready() and self._broken is not None:
            raise Broken(self._broken)
        return ready()


class Local(Queue):
    """A hop within one process; both ends are this object. Messages are passed, not copied."""

    def __init__(self, slots: int = SLOTS, hear: Hear | None = None, timeout_s: float = 120.0):
        super().__init__()
        self._slots, self._hear, self._timeout_s = slots, hear, timeout_s
        self._held = 0

    @property
    def held(self) -> int:
        """Slots taken."""
        return self._held

    def room(self) -> bool:
        """Would a put return at once?"""
        return self._broken is not None or self._held < self._slots

    def put(self, message: Message) -> None:
        if isinstance(message, Epoch):
            if self._hear:
                self._hear(message)
            return
        with self._changed:
            if not isinstance(message, URGENT):
                if not self._wait(lambda: self._broken is None and self._held < self._slots, self._timeout_s):
                    raise Broken(f"the next stage took nothing for {self._timeout_s:g} s")
                self._held += 1
            self._messages.append(message)
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Message | None:
        with self._changed:
            if not self._wait(lambda: bool(self._messages), timeout_s, wakes=True):
                return None
            message = self._messages.popleft()
            self._held -= not isinstance(message, URGENT)
            self._changed.notify_all()
            return message


class GlooGiver(Queue):
    """Upstream end of a hop to process `peer`. Tag 1 carries a length and that many bytes; a byte comes back per message taken."""

    def __init__(self, group: Group, peer: int, slots: int = SLOTS, timeout_s: float = 120.0):
        super().__init__()
        self._group, self._peer, self._credits, self._timeout_s = group, peer, slots, timeout_s
        self._wire = threading.Lock()  # the length and its bytes go together
        self.thread = threading.Thread(target=self._receive_credits, name=f"credits from {peer}", daemon=True)
        self.thread.start()

    def put(self, message: Message) -> None:
        if not isinstance(message, URGENT):
            with self._changed:
                if not self._wait(lambda: self._broken is None and self._credits > 0, self._timeout_s):
                    raise Broken(f"the next stage took nothing for {self._timeout_s:g} s")
                self._credits -= 1
        data = wire.encode(message)
        try:
            with self._wire:
                for tensor in (torch.tensor([data.numel()]), data):
                    self._group.send([tensor], self._peer, FORWARD).wait(timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            self.abort(f"the next stage cannot be reached: {_first_line(error)}")
            raise Broken(self._broken) from None

    def _receive_credits(self) -> None:
        credit = torch.zeros(1, dtype=torch.uint8)
        try:
            while True:
                self._group.recv([credit], self._peer, CREDIT).wait(EVER)
                with self._changed:
                    self._credits += 1
                    self._changed.notify_all()
        except RuntimeError as error:
            self.abort(f"the next stage went away: {_first_line(error)}")


class GlooTaker(Queue):
    """Downstream end of a hop from process `peer`."""

    def __init__(self, group: Group, peer: int, hear: Hear, timeout_s: float = 120.0):
        super().__init__()
        self._group, self._peer, self._hear, self._timeout_s = group, peer, hear, timeout_s
        self._credit = torch.ones(1, dtype=torch.uint8)
        self.thread = threading.Thread(target=self._receive, name=f"messages from {peer}", daemon=True)
        self.thread.start()

    def take(self, timeout_s: float) -> Message | None:
        with self._changed:
            if not self._wait(lambda: bool(self._messages), timeout_s, wakes=True):
                return None
            message = self._messages.popleft()
        if not isinstance(message, URGENT):
            try:
                self._group.send([self._credit], self._peer, CREDIT).wait(timedelta(seconds=self._timeout_s))
            except RuntimeError as error:  # the message is good all the same; the next take will tell
                self.abort(f"the stage before went away: {_first_line(error)}")
        return message

    def _receive(self) -> None:
        length = torch.zeros(1, dtype=torch.int64)
        try:
            while True:
                self._group.recv([length], self._peer, FORWARD).wait(EVER)
                if not 0 < length.item() <= wire.MOST_BYTES:
                    raise RuntimeError(f"a message of {length.item()} bytes")
                data = torch.empty(int(length.item()), dtype=torch.uint8)
                self._group.recv([data], self._peer, FORWARD).wait(EVER)
                message = wire.decode(data)
                if isinstance(message, Epoch):
                    self._hear(message)
                    continue
                with self._changed:
                    self._messages.append(message)
                    self._changed.notify_all()
        except (RuntimeError, ValueError) as error:
            self.abort(f"the stage before went away: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
