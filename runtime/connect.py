"""The two hops of a process, made anew for every generation of a pipeline's connections, and undone without a trace."""

from __future__ import annotations

from typing import Self

from everface.runtime.carrier import open_giver, open_taker
from everface.runtime.control import Join
from everface.runtime.handoff import Broken, Giver, Hear, Taker
from everface.runtime.stage import Epoch

JOIN_S = 60.0  # for processes that have their roles to connect


class Hops:
    """From the stage before, to the stage after. `hear` is called at once with an Epoch, which is then handed on.

    Opening them takes no time; `meet` waits for the neighbours, and may be ended by `abort` from another thread.
    """

    def __init__(self, join: Join, hear: Hear):
        after = (join.rank + 1) % join.world
        caller, last = join.rank == join.world - 1, join.rank == join.world - 2

        def path(to: int) -> str:
            return f"{join.folder}/{join.generation}.{to}"

        def pass_on(notice: Epoch) -> None:
            hear(notice)
            if not caller and not last:
                self.giver.put(notice)

        def take() -> Taker:
            return open_taker(join.kinds[join.rank], path(join.rank), pass_on, join.device, join.timeout_s, JOIN_S)

        def give() -> Giver:
            return open_giver(join.kinds[after], path(after), join.device, join.slots[after], join.timeout_s, JOIN_S)

        # kinds that wait for the other end need an order: the caller's giver comes first, every stage's taker
        if caller:
            self.giver, self.taker = give(), take()
        else:
            self.taker, self.giver = take(), give()

    def meet(self) -> None:
        """Raises Broken if a neighbour does not come."""
        for end in (self.taker, self.giver):
            if not end.meet(JOIN_S):
                raise Broken(f"a neighbour did not connect within {JOIN_S:g} s")

    def abort(self, reason: str) -> None:
        """Wake whoever waits at either hop. From any thread."""
        self.taker.abort(reason)
        self.giver.abort(reason)

    def close(self) -> None:
        self.abort("the connections are closed")
        self.taker.join()
        self.giver.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
