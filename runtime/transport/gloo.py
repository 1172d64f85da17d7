"""A channel between two processes over TCP, by torch's gloo: between hosts, and on systems without Unix sockets.

Each channel has a group of its own, since a channel ends by closing the connections of its group.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed

from everface.runtime.messages import UNBUFFERED, Message
from everface.runtime.signal import Signal
from everface.runtime.transport import serialization
from everface.runtime.transport.base import SLOTS, ChannelError, CreditedSender, EndState, OnCancel, QueuedReceiver

distributed: Any = torch.distributed  # torch has no types for much of what is used here
FORWARD, CREDIT, UNUSED = 1, 2, 3  # tags; nothing is ever sent with the last one
FOREVER = timedelta(days=30)  # a receiving thread waits on its socket until something comes or the channel ends
PASS_S = 10.0  # for one message or credit to reach a peer, which has a thread that always receives; and for the rest of a begun one


class Group(Protocol):
    """What a channel needs of a ProcessGroupGloo. Both calls return an object with wait(timedelta), which raises RuntimeError."""

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any: ...

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any: ...


@dataclass(frozen=True)
class Network:
    """How an end of a channel between two hosts finds the other: both ask the store, HOST:PORT; `address` is this host's own."""

    store: str
    address: str


def join_pair(path: str, rank: int, timeout_s: float, network: Network | None = None) -> Group:
    """The group of one channel: sender rank 0, receiver rank 1. They meet at the file `path`, over the loopback interface; with `network`
    under that name in its store.

    Raises ChannelError.
    """
    options = distributed.ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    address = network.address if network else "127.0.0.1"
    try:
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname=address)]
        store = _join_store(path, options._timeout, network) if network else distributed.FileStore(path, 2)
        return distributed.ProcessGroupGloo(store, rank, 2, options)
    except RuntimeError as error:
        raise ChannelError(f"the other stage was not there after {timeout_s:g} s: {_first_line(error)}") from None


def open_store() -> Any:
    """A store for as long as the object exists, at every address of this host, at its `port`."""
    return distributed.TCPStore("localhost", 0, None, True, wait_for_workers=False)


def _join_store(path: str, timeout: timedelta, network: Network) -> Any:
    host, port = network.store.rsplit(":", 1)
    return distributed.PrefixStore(path, distributed.TCPStore(host, int(port), None, False, timeout, wait_for_workers=False))


class GlooEnd(EndState):
    """What both ends do with their group. `join` releases it."""

    _group: Group | None
    _peer: int
    _timeout_s: float

    def join(self) -> None:
        super().join()
        self._group = None  # the last reference: gloo's threads and sockets end now

    def _open(self) -> Group:
        if self._group is None:
            raise RuntimeError("the channel is closed")
        return self._group

    def _send(self, tensor: torch.Tensor, tag: int) -> None:
        """Send and wait until it has arrived. Raises RuntimeError.

        Gloo forgets a send during which the peer closes its group. Then only a timeout ends the wait, not the closed connection.
        """
        self._open().send([tensor], self._peer, tag).wait(timedelta(seconds=min(PASS_S, self._timeout_s)))

    def _disconnect(self) -> None:
        # Gloo has no other way to end a wait: when one receive times out, every connection of its group is closed.
        with contextlib.suppress(RuntimeError):
            self._open().recv([torch.empty(1, dtype=torch.uint8)], self._peer, UNUSED).wait(timedelta(milliseconds=1))


class GlooSender(GlooEnd, CreditedSender):
    """Upstream end of a channel to process `peer`: a length and that many bytes per message; a byte comes back as its credit."""

    def __init__(self, group: Group, peer: int, slots: int = SLOTS, timeout_s: float = 120.0):
        super().__init__(slots, timeout_s)
        self._group, self._peer = group, peer
        self._sending = threading.Lock()  # a length and its bytes stay together
        self._start(self._receive_credits, f"everface credits from {peer}")

    def send(self, message: Message) -> None:
        packet = serialization.pack(message)
        if not isinstance(message, UNBUFFERED):
            self._acquire_credit()
        data = serialization.write(packet, torch.empty(packet.size, dtype=torch.uint8))
        try:
            with self._sending:
                for tensor in (torch.tensor([packet.size]), data):
                    self._send(tensor, FORWARD)
        except RuntimeError as error:
            self._fail(f"the next stage cannot be reached: {_first_line(error)}")
            raise ChannelError(self._broken) from None

    def _receive_credits(self) -> None:
        credit, group = torch.zeros(1, dtype=torch.uint8), self._open()
        try:
            while True:
                group.recv([credit], self._peer, CREDIT).wait(FOREVER)
                self._add_credits(1)
        except RuntimeError as error:
            self._fail(f"the next stage went away: {_first_line(error)}")


class GlooReceiver(GlooEnd, QueuedReceiver):
    """Downstream end of a channel from process `peer`."""

    def __init__(
        self, group: Group, peer: int, on_cancel: OnCancel | None, timeout_s: float = 120.0, signal: Signal | None = None
    ):
        super().__init__(on_cancel, signal=signal)
        self._group, self._peer, self._timeout_s = group, peer, timeout_s
        self._credit = torch.ones(1, dtype=torch.uint8)
        self._start(self._receive_messages, f"everface messages from {peer}")

    def receive(self, timeout_s: float) -> Message | None:
        message = self._dequeue(timeout_s)
        if message is not None and not isinstance(message, UNBUFFERED):
            try:
                self._send(self._credit, CREDIT)
            except RuntimeError as error:  # the message itself is complete; the next receive raises
                self._fail(f"the previous stage went away: {_first_line(error)}")
        return message

    def _receive_messages(self) -> None:
        length, group = torch.zeros(1, dtype=torch.int64), self._open()
        try:
            while True:
                group.recv([length], self._peer, FORWARD).wait(FOREVER)
                if not 0 < length.item() <= serialization.MOST_BYTES:
                    raise RuntimeError(f"a message of {length.item()} bytes")
                data = torch.empty(int(length.item()), dtype=torch.uint8)
                # Gloo forgets a receive whose bytes are partly there when the connection ends. Then only a timeout ends the wait.
                group.recv([data], self._peer, FORWARD).wait(timedelta(seconds=PASS_S))
                self._enqueue(serialization.decode(data))
        except (RuntimeError, ValueError) as error:
            self._fail(f"the previous stage went away: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return "nothing passed in time" if "Application timeout" in line or "Timed out" in line else line
