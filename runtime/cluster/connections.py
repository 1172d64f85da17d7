"""The two channels of a process. They are opened for each generation of a pipeline's connections."""

from __future__ import annotations

from typing import Self

from everface.runtime.cluster.control import Connect
from everface.runtime.messages import Cancel
from everface.runtime.signal import Signal
from everface.runtime.transport.base import ChannelError, OnCancel, Receiver, Sender
from everface.runtime.transport.gloo import Network
from everface.runtime.transport.selection import open_receiver, open_sender

CONNECT_S = 60.0  # for processes to connect once their roles are built


class Connections:
    """`receiver` is from the previous stage, `sender` to the next. `on_cancel` gets each Cancel at once; it is then passed on.

    Only with gloo and nccl does the constructor wait for the neighbors. `wait_connected` always does; `abort` from another thread
    ends its wait. `signal` is set when a message arrives or the connection to the previous stage breaks.
    """

    def __init__(self, connect: Connect, on_cancel: OnCancel, signal: Signal | None = None):
        after = (connect.rank + 1) % connect.world
        network = Network(connect.store, connect.address) if connect.store else None
        caller, last = connect.rank == connect.world - 1, connect.rank == connect.world - 2

        def path(to: int) -> str:
            return f"{connect.folder}/{connect.generation}.{to}"

        def pass_on(cancel: Cancel) -> None:
            on_cancel(cancel)
            if not caller and not last:
                self.sender.send(cancel)

        def receiver() -> Receiver:
            kind, timeout_s = connect.kinds[connect.rank], connect.timeout_s
            return open_receiver(kind, path(connect.rank), pass_on, connect.device, timeout_s, CONNECT_S, signal=signal, network=network)

        def sender() -> Sender:
            kind, timeout_s = connect.kinds[after], connect.timeout_s
            return open_sender(kind, path(after), connect.device, connect.slots[after], timeout_s, CONNECT_S, network=network)

        # some kinds wait for the other end, so the order matters: the caller opens its sender first, every stage its receiver
        if caller:
            self.sender, self.receiver = sender(), receiver()
        else:
            self.receiver, self.sender = receiver(), sender()

    def wait_connected(self) -> None:
        """Raises ChannelError if a neighbor does not connect."""
        for end in (self.receiver, self.sender):
            if not end.wait_connected(CONNECT_S):
                raise ChannelError(f"a neighboring stage did not connect within {CONNECT_S:g} s")

    def abort(self, reason: str) -> None:
        """End every wait on both channels. From any thread."""
        self.receiver.abort(reason)
        self.sender.abort(reason)

    def close(self) -> None:
        self.abort("the connections are closed")
        self.receiver.join()
        self.sender.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
