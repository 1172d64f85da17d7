"""The two channels of a process, made anew for every generation of a pipeline's connections, and undone without a trace."""

from __future__ import annotations

from typing import Self

from everface.runtime.transport.selection import open_sender, open_receiver
from everface.runtime.cluster.control import Join
from everface.runtime.transport.base import ChannelError, Sender, OnCancel, Receiver
from everface.runtime.stage import Cancel

JOIN_S = 60.0  # for processes that have their roles to connect


class Connections:
    """From the stage before, to the stage after. `on_cancel` is called at once with an Cancel, which is then handed on.

    OpenSession them takes no time; `wait_connected` waits for the neighbours, and may be ended by `abort` from another thread.
    """

    def __init__(self, join: Join, on_cancel: OnCancel):
        after = (join.rank + 1) % join.world
        caller, last = join.rank == join.world - 1, join.rank == join.world - 2

        def path(to: int) -> str:
            return f"{join.folder}/{join.generation}.{to}"

        def pass_on(notice: Cancel) -> None:
            on_cancel(notice)
            if not caller and not last:
                self.sender.put(notice)

        def take() -> Receiver:
            return open_receiver(join.kinds[join.rank], path(join.rank), pass_on, join.device, join.timeout_s, JOIN_S)

        def give() -> Sender:
            return open_sender(join.kinds[after], path(after), join.device, join.slots[after], join.timeout_s, JOIN_S)

        # kinds that wait for the other end need an order: the caller's sender comes first, every stage's receiver
        if caller:
            self.sender, self.receiver = give(), take()
        else:
            self.receiver, self.sender = take(), give()

    def wait_connected(self) -> None:
        """Raises ChannelError if a neighbour does not come."""
        for end in (self.receiver, self.sender):
            if not end.wait_connected(JOIN_S):
                raise ChannelError(f"a neighbour did not connect within {JOIN_S:g} s")

    def abort(self, reason: str) -> None:
        """Wake whoever waits at either channel. From any thread."""
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
