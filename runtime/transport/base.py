"""A channel between two stages: messages forward, credits backward, so that a channel never holds more than its slots.

A sender blocks in `send` while all slots are taken; a slot is free again when its message has been received. Cancel and Stop need
no slot. A Cancel is not queued: the receiver calls `on_cancel` with it at once, ahead of the blocks that wait. `abort` ends every
wait at both ends; after `abort` and `join` an end holds neither a thread nor a file. Timeouts are in seconds, precise to a
millisecond. `everface.runtime.transport.selection` chooses the kind of channel.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from everface.runtime.messages import Cancel, Message
from everface.runtime.signal import Signal

SLOTS = 2

OnCancel = Callable[[Cancel], None]


class ChannelError(RuntimeError):
    """The channel was aborted, the process at its other end died, or it accepted nothing in time."""


class ChannelEnd(Protocol):
    """What both ends offer. Any thread may call `abort`."""

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until the other end is connected; False if it was not in time. Raises ChannelError."""
        ...

    def abort(self, reason: str = ...) -> None:
        """Break the channel for both ends and end every wait. The first reason stays."""
        ...

    def join(self) -> None:
        """After an abort: wait until the end's thread has ended and its files are closed."""
        ...


class Sender(ChannelEnd, Protocol):
    """Upstream end."""

    def send(self, message: Message) -> None:
        """Wait for a slot and pass the message on. Raises ChannelError. Any thread may send a Cancel, one thread the rest."""
        ...


class Receiver(ChannelEnd, Protocol):
    """Downstream end, for one thread."""

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None if none came in time. Returns what arrived before a break; after that raises ChannelError."""
        ...


class EndState:
    """What both ends of every channel share: a condition to wait on, why the channel is broken, the thread of the end."""

    thread: threading.Thread

    def __init__(self, connected: bool = True) -> None:
        self._changed = threading.Condition()
        self._connected = connected
        self._broken: str | None = None  # why

    def wait_connected(self, timeout_s: float) -> bool:
        with self._changed:
            return self._wait(lambda: self._connected, timeout_s)

    def abort(self, reason: str = "the channel was aborted") -> None:
        self._fail(reason)
        self._disconnect()

    def join(self) -> None:
        self.thread.join()

    def _fail(self, reason: str) -> None:
        """Break the channel for the callers of this end. The other end notices by itself, or by `_disconnect`."""
        with self._changed:
            self._broken = self._broken or reason
            self._changed.notify_all()

    def _disconnect(self) -> None:
        """End the waits of the thread that serves this end, and let the other end notice."""

    def _start(self, run: Callable[[], None], name: str) -> None:
        self.thread = threading.Thread(target=run, name=name, daemon=True)
        self.thread.start()

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """With the condition held: wait until `ready`; False after the timeout. Raises ChannelError if broken and not ready."""
        self._changed.wait_for(lambda: ready() or self._broken is not None, timeout_s)
        if not ready() and self._broken is not None:
            raise ChannelError(self._broken)
        return ready()


class CreditedSender(EndState):
    """An upstream end and its credits."""

    def __init__(self, slots: int, timeout_s: float, connected: bool = True):
        super().__init__(connected)
        self._credits, self._timeout_s = slots, timeout_s

    def _acquire_credit(self) -> None:
        """Wait for a credit and take it. Raises ChannelError."""
        with self._changed:
            if not self._wait(lambda: self._broken is None and self._credits > 0, self._timeout_s):
                raise ChannelError(f"the next stage received nothing for {self._timeout_s:g} s")
            self._credits -= 1

    def _add_credits(self, credits: int) -> None:
        with self._changed:
            self._credits += credits
            self._changed.notify_all()


class QueuedReceiver(EndState):
    """A downstream end and the messages that have arrived there. `signal` is set at each arrival and at a break."""

    def __init__(self, on_cancel: OnCancel | None, connected: bool = True, signal: Signal | None = None):
        super().__init__(connected)
        self._on_cancel, self._signal = on_cancel, signal
        self._messages: deque[Message] = deque()

    def _dequeue(self, timeout_s: float) -> Message | None:
        with self._changed:
            if timeout_s > 0:
                self._wait(lambda: bool(self._messages), timeout_s)
            if self._messages:
                return self._messages.popleft()
            if self._broken is not None:
                raise ChannelError(self._broken)
            return None

    def _enqueue(self, message: Message) -> None:
        if isinstance(message, Cancel):
            if self._on_cancel:
                self._on_cancel(message)
            return
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()
        if self._signal:
            self._signal.set()

    def _fail(self, reason: str) -> None:
        super()._fail(reason)
        if self._signal:
            self._signal.set()


Control = TypeVar("Control", bound=ChannelEnd)


class SideChannelEnd(Generic[Control]):
    """An end that moves the tensors of blocks itself and leaves all else, with the credits, to `control`, an end of another kind."""

    def __init__(self, control: Control):
        self._control = control

    def wait_connected(self, timeout_s: float) -> bool:
        return self._control.wait_connected(timeout_s)

    def abort(self, reason: str = "the channel was aborted") -> None:
        self._control.abort(reason)

    def join(self) -> None:
        self._control.join()
