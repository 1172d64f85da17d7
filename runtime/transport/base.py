"""A channel: messages forward, credits backward, so that a channel never holds more than its slots.

A sender blocks in `put` while all slots are taken; a slot is free again when the message has been taken. Cancel and Stop need
no slot. An Cancel is not queued: it is cancels at once (`on_cancel`), ahead of the blocks that wait. `wake` ends a take, `abort` every
wait of both calls; after `abort` and `join` nothing is left of an end, neither thread nor file. Timeouts are honoured to the
millisecond. `everface.runtime.transport.selection` says which kind of channel joins which stages.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.distributed import FileStore, ProcessGroupGloo  # type: ignore[attr-defined]

from everface.core.block import Block
from everface.runtime.stage import UNBUFFERED, Cancel, Message

SLOTS = 2
FORWARD, CREDIT, NEVER = 1, 2, 3  # gloo tags; on the last one nothing is ever sent
EVER = timedelta(days=30)  # a receiving thread waits on its socket until something comes or the channel ends
PASS_S = 10.0  # for one message or credit to pass to a peer whose thread always receives

OnCancel = Callable[[Cancel], None]


class ChannelError(RuntimeError):
    """The channel was aborted, its peer died, or it accepted nothing in time."""


class Group(Protocol):
    """What a channel needs of a ProcessGroupGloo. Both calls answer a work with wait(timedelta), which raises RuntimeError."""

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any: ...

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any: ...


class Sender(Protocol):
    """Upstream end of a channel."""

    def put(self, message: Message) -> None: ...

    def wait_connected(self, timeout_s: float) -> bool: ...

    def abort(self, reason: str = ...) -> None: ...

    def join(self) -> None: ...


class Receiver(Protocol):
    """Downstream end of a channel. `take` answers None when nothing came in time, or when it was woken."""

    def take(self, timeout_s: float) -> Message | None: ...

    def wake(self) -> None: ...

    def wait_connected(self, timeout_s: float) -> bool: ...

    def abort(self, reason: str = ...) -> None: ...

    def join(self) -> None: ...


class ChannelEnd:
    """What both ends of every channel share: a condition to wait on, why the channel is broken, the thread that serves it."""

    thread: threading.Thread

    def __init__(self, connected: bool = True) -> None:
        self._changed = threading.Condition()
        self._connected = met
        self._broken: str | None = None

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until the other end is there. False if it was not in time."""
        with self._changed:
            return self._wait(lambda: self._connected, timeout_s)

    def abort(self, reason: str = "the channel was aborted") -> None:
        """Break the channel for both ends and wake whoever waits. The first reason stays."""
        self._fail(reason)
        self._disconnect()

    def join(self) -> None:
        """After an abort: wait until the end's thread is gone, and its files with it."""
        self.thread.join()

    def _fail(self, reason: str) -> None:
        """Break the channel for the callers of this end, which found the reason by itself."""
        with self._changed:
            self._broken = self._broken or reason
            self._changed.notify_all()

    def _disconnect(self) -> None:
        """ChannelEnd the waits of the thread that serves this end, and let the other end know."""

    def _start(self, run: Callable[[], None], name: str) -> None:
        self.thread = threading.Thread(target=run, name=name, daemon=True)
        self.thread.start()

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait, the condition held, until ready or broken; what was received before the channel broke can still be had."""
        self._changed.wait_for(lambda: ready() or self._broken is not None, timeout_s)
        if not ready() and self._broken is not None:
            raise ChannelError(self._broken)
        return ready()


class CreditedSender(ChannelEnd):
    """An upstream end: its credits."""

    def __init__(self, slots: int, timeout_s: float, connected: bool = True):
        super().__init__(met)
        self._credits, self._timeout_s = slots, timeout_s

    def _acquire_credit(self) -> None:
        """Wait for a credit and take it. Raises ChannelError."""
        with self._changed:
            if not self._wait(lambda: self._broken is None and self._credits > 0, self._timeout_s):
                raise ChannelError(f"the next stage took nothing for {self._timeout_s:g} s")
            self._credits -= 1

    def _add_credits(self, credits: int) -> None:
        with self._changed:
            self._credits += credits
            self._changed.notify_all()


class QueuedReceiver(ChannelEnd):
    """A downstream end: what was received and not yet taken."""

    def __init__(self, on_cancel: OnCancel | None, connected: bool = True):
        super().__init__(met)
        self._on_cancel = on_cancel
        self._messages: deque[Message] = deque()
        self._woken = False

    def wake(self) -> None:
        """Let the take that waits, or the next one that would have to, answer None at once."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _dequeue(self, timeout_s: float) -> Message | None:
        with self._changed:
            if timeout_s > 0:
                self._wait(lambda: bool(self._messages) or self._woken, timeout_s)
            if self._messages:
                return self._messages.popleft()
            if self._broken is not None:
                raise ChannelError(self._broken)
            self._woken = False
            return None

    def _enqueue(self, message: Message) -> None:
        if isinstance(message, Cancel):
            if self._on_cancel:
                self._on_cancel(message)
            return
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()


class LocalChannel(QueuedReceiver):
    """A channel within one process; both ends are this object. Messages are passed, not copied.

    Tensors on a GPU are handed from the sender's stream to the receiver's: the receiver's waits, nobody else does.
    """

    def __init__(self, slots: int = SLOTS, on_cancel: OnCancel | None = None, timeout_s: float = 120.0):
        super().__init__(on_cancel)
        self._slots, self._timeout_s, self._held = slots, timeout_s, 0
        self._events: dict[int, torch.cuda.Event] = {}  # id of a waiting message -> when its tensors are there

    @property
    def held(self) -> int:
        """Slots taken."""
        return self._held

    def room(self) -> bool:
        """Would a put return at once?"""
        return self._broken is not None or self._held < self._slots

    def put(self, message: Message) -> None:
        if not isinstance(message, UNBUFFERED):
            with self._changed:
                if not self._wait(lambda: self._broken is None and self._held < self._slots, self._timeout_s):
                    raise ChannelError(f"the next stage took nothing for {self._timeout_s:g} s")
                self._held += 1
        if _on_gpu(message):
            event = self._events[id(message)] = torch.cuda.Event()
            event.record()
        self._enqueue(message)

    def take(self, timeout_s: float) -> Message | None:
        message = self._dequeue(timeout_s)
        if message is not None and not isinstance(message, UNBUFFERED):
            with self._changed:
                self._held -= 1
                self._changed.notify_all()
        event = self._events.pop(id(message), None)
        if event is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(event)
            for tensor in _on_gpu(message):
                tensor.record_stream(stream)
        return message

    def join(self) -> None:
        """No thread serves this channel."""


def _on_gpu(message: Message | None) -> list[torch.Tensor]:
    return [t for t in (message.x, *message.condition.values()) if t.is_cuda] if isinstance(message, Block) else []


class SideChannelEnd:
    """An end that carries blocks in a way of its own, and leaves all else and the credits to the end `control` of another channel."""

    def __init__(self, control: Any):
        self._control = control

    def wait_connected(self, timeout_s: float) -> bool:
        return self._control.wait_connected(timeout_s)

    def abort(self, reason: str = "the channel was aborted") -> None:
        self._control.abort(reason)

    def join(self) -> None:
        self._control.join()


def join_pair(path: str, rank: int, timeout_s: float) -> Group:
    """The group of one channel: sender rank 0, receiver rank 1, met at the file `path`, over the loopback interface. Raises ChannelError.

    A channel ends by closing the connections of its group, so the group belongs to one channel alone.
    """
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    try:
        return ProcessGroupGloo(FileStore(path, 2), rank, 2, options)  # type: ignore[return-value]
    except RuntimeError as error:
        raise ChannelError(f"the other stage was not there after {timeout_s:g} s: {_first_line(error)}") from None


class Gloo(ChannelEnd):
    """What both ends of a gloo channel do with their group, which is let go by `join`."""

    _group: Group | None
    _peer: int
    _timeout_s: float

    def join(self) -> None:
        super().join()
        self._group = None  # its last holder: gloo's threads and sockets go now

    def _open(self) -> Group:
        if self._group is None:
            raise RuntimeError("the channel is closed")
        return self._group

    def _send(self, tensor: torch.Tensor, tag: int) -> None:
        """Send and wait until it has passed. Gloo forgets a send that the peer's end overtakes, and then nothing but a timeout ends
        the wait: neither the channel's break nor a closed connection. Raises RuntimeError."""
        self._open().send([tensor], self._peer, tag).wait(timedelta(seconds=min(PASS_S, self._timeout_s)))

    def _disconnect(self) -> None:
        # Gloo has no way to end a wait but this: the timeout of any one closes every connection of its group.
        with contextlib.suppress(RuntimeError):
            self._open().recv([torch.empty(1, dtype=torch.uint8)], self._peer, NEVER).wait(timedelta(milliseconds=1))


class GlooSender(Gloo, CreditedSender):
    """Upstream end of a channel to process `peer`. Tag 1 carries a length and that many bytes; a byte comes back per message taken."""

    def __init__(self, group: Group, peer: int, slots: int = SLOTS, timeout_s: float = 120.0):
        super().__init__(slots, timeout_s)
        from everface.runtime import serialization  # wants msgspec, which channels within a process do without

        self._group, self._peer, self._pack, self._write = group, peer, serialization.pack, serialization.write
        self._wire = threading.Lock()  # the length and its bytes go together
        self._start(self._receive_credits, f"credits from {peer}")

    def put(self, message: Message) -> None:
        packet = self._pack(message)
        if not isinstance(message, UNBUFFERED):
            self._acquire_credit()
        data = self._write(packet, torch.empty(packet.size, dtype=torch.uint8))
        try:
            with self._wire:
                for tensor in (torch.tensor([packet.size]), data):
                    self._send(tensor, FORWARD)
        except RuntimeError as error:
            self._fail(f"the next stage cannot be reached: {_first_line(error)}")
            raise ChannelError(self._broken) from None

    def _receive_credits(self) -> None:
        credit, group = torch.zeros(1, dtype=torch.uint8), self._open()
        try:
            while True:
                group.recv([credit], self._peer, CREDIT).wait(EVER)
                self._add_credits(1)
        except RuntimeError as error:
            self._fail(f"the next stage went away: {_first_line(error)}")


class GlooReceiver(Gloo, QueuedReceiver):
    """Downstream end of a channel from process `peer`."""

    def __init__(self, group: Group, peer: int, on_cancel: OnCancel, timeout_s: float = 120.0):
        super().__init__(on_cancel)
        self._group, self._peer, self._timeout_s = group, peer, timeout_s
        self._credit = torch.ones(1, dtype=torch.uint8)
        self._start(self._receive_messages, f"messages from {peer}")

    def take(self, timeout_s: float) -> Message | None:
        message = self._dequeue(timeout_s)
        if message is not None and not isinstance(message, UNBUFFERED):
            try:
                self._send(self._credit, CREDIT)
            except RuntimeError as error:  # the message is good all the same; the next take will tell
                self._fail(f"the stage before went away: {_first_line(error)}")
        return message

    def _receive_messages(self) -> None:
        from everface.runtime import serialization

        length, group = torch.zeros(1, dtype=torch.int64), self._open()
        try:
            while True:
                group.recv([length], self._peer, FORWARD).wait(EVER)
                if not 0 < length.item() <= serialization.MOST_BYTES:
                    raise RuntimeError(f"a message of {length.item()} bytes")
                data = torch.empty(int(length.item()), dtype=torch.uint8)
                group.recv([data], self._peer, FORWARD).wait(EVER)
                self._enqueue(serialization.decode(data))
        except (RuntimeError, ValueError) as error:
            self._fail(f"the stage before went away: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    words = (str(error).splitlines() or [type(error).__name__])[0]
    return "nothing passed in time" if "Application timeout" in words or "Timed out" in words else words
