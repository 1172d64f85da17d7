"""The two hops of a process, made anew for every generation of a pipeline's connections, and undone without a trace."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from torch.distributed import FileStore, ProcessGroupGloo  # type: ignore[attr-defined]

from everface.runtime.control import Join
from everface.runtime.handoff import Broken, Giver, GlooGiver, GlooTaker, Group, Hear, Taker

JOIN_S = 60.0  # for processes that have their roles to connect


@dataclass
class Hops:
    """From the stage before, to the stage after."""

    taker: Taker
    giver: Giver
    group: Group

    def abort(self, reason: str) -> None:
        """Wake whoever waits at either hop. From any thread."""
        self.taker.abort(reason)
        self.giver.abort(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort("the connections are closed")
        self.group.abort()  # type: ignore[attr-defined]
        for end in (self.taker, self.giver):
            end.thread.join(5.0)  # type: ignore[attr-defined]


def join_group(store: str, rank: int, world: int, timeout_s: float) -> Group:
    """Connect every process of the pipeline with every other, over the loopback interface only."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return ProcessGroupGloo(FileStore(store, world), rank, world, options)  # type: ignore[return-value]


def connect(join: Join, hear: Hear) -> Hops:
    """Meet the neighbours. `hear`: called at once with an Epoch, which is also handed on. Raises Broken if they do not come."""
    last = join.rank == join.world - 1  # the caller, whose giver feeds the first stage
    try:
        group = join_group(f"{join.folder}/{join.generation}", join.rank, join.world, JOIN_S)
    except RuntimeError as error:
        raise Broken(f"the stages could not be connected: {error}") from None
    after = (join.rank + 1) % join.world
    giver = GlooGiver(group, after, join.slots[after], join.timeout_s)

    def pass_on(notice) -> None:
        hear(notice)
        if after != join.world - 1 and not last:
            giver.put(notice)

    taker = GlooTaker(group, (join.rank - 1) % join.world, pass_on, join.timeout_s)
    return Hops(taker, giver, group)
