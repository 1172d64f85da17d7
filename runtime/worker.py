"""A child process of a pipeline: builds the roles of its device and runs them until told to stop or its parent is gone."""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch.distributed import FileStore, ProcessGroupGloo  # type: ignore[attr-defined]

from everface.core.block import Block
from everface.core.errors import BadInput, EverfaceError
from everface.core.log import start_log
from everface.runtime.handoff import Broken, GlooGiver, GlooTaker, Group
from everface.runtime.stage import Epoch, Role, Stage, Stop, Tombstone
from everface.runtime.supervisor import DONE, JOINING, READY

Factory = Callable[[str, dict[str, Any]], Role]


def find_factory(name: str) -> Factory:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise BadInput(f"role factory {name!r} cannot be imported: {error}; give it as 'module:function'") from None


def join_group(store: str, rank: int, world: int, timeout_s: float) -> Group:
    """Connect every process of the pipeline with every other, over the loopback interface only."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return ProcessGroupGloo(FileStore(store, world), rank, world, options)  # type: ignore[return-value]


def serve(stage: Stage, taker: GlooTaker, giver: GlooGiver, last: bool, tell: Callable[[bytes], None]) -> None:
    """Take, run, give, until Stop. The parent, after the last stage, wants blocks and tombstones only."""
    while True:
        message = taker.take(3600.0)
        if message is None:
            continue
        if isinstance(message, Stop):
            if not last:
                giver.put(message)
            return
        answer = stage.run(message)
        del message
        tell(DONE)  # before it is given: if the next stage does not take it, that one is late
        if not last or isinstance(answer, Block | Tombstone):
            giver.put(answer)


def main(
    rank: int, roles: list[str], world: int, store: str, factory: str, spec: dict[str, Any],
    threads: int, timeout_s: float, start_s: float, slots: list[int],
) -> NoReturn:  # fmt: skip
    """`rank` r takes from r-1 and gives to r+1; the parent is the last rank, hence before the first. slots: of each hop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = os.dup(1)
    os.dup2(2, 1)  # what roles print goes to the log
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()

    def tell(event: bytes) -> None:
        os.write(events, event)

    try:
        start_log()
        torch.set_num_threads(threads)
        build = find_factory(factory)
        tell(JOINING)
        group = join_group(store, rank, world, start_s)
        last = rank == world - 2
        giver = GlooGiver(group, rank + 1, slots[rank + 1], timeout_s)
        stage = Stage({role: build(role, spec) for role in roles})

        def hear(notice: Epoch) -> None:
            stage.hear(notice)
            if not last:
                giver.put(notice)

        taker = GlooTaker(group, (rank - 1) % world, hear, timeout_s)
        tell(READY)
        serve(stage, taker, giver, last, tell)
    except Broken:  # another stage is the culprit; the parent will find it, and end this process
        threading.Event().wait()
    except EverfaceError as error:
        _leave(2, str(error))
    except BaseException:
        _leave(1, traceback.format_exc())
    _leave(0)


def _leave(code: int, words: str = "") -> NoReturn:
    """End now: threads that wait on sockets are not waited for."""
    if words:
        print(words, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _follow_parent(parent: int) -> NoReturn:
    """End this process when the parent closes stdin or dies; PDEATHSIG would follow the parent's thread, not the parent."""
    while os.getppid() == parent:  # asked every second, for a fork of the parent may hold stdin open
        if select.select([0], [], [], 1.0)[0] and not os.read(0, 4096):
            break
    os._exit(3)
