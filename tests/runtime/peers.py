"""The other process of a hop: imported once, then forked for each line `KIND SIDE PATH` of its input, whose process id it prints.

A `taker` takes whatever comes, a `sleeper` listens and takes nothing, a `giver` gives blocks without end.
"""

import os
import sys
import threading
from collections.abc import Callable
from itertools import count

from everface.runtime.handoff import GlooGiver, GlooTaker, join_pair
from everface.runtime.shared import SharedGiver, SharedTaker
from everface.runtime.stage import Epoch


def open_giver(kind: str, path: str, timeout_s: float = 60.0) -> GlooGiver | SharedGiver:
    if kind == "gloo":
        return GlooGiver(join_pair(path, 0, 60.0), 1, timeout_s=timeout_s)
    return SharedGiver(path, timeout_s=timeout_s)


def open_taker(kind: str, path: str, hear: Callable[[Epoch], None] = print) -> GlooTaker | SharedTaker:
    if kind == "gloo":
        return GlooTaker(join_pair(path, 1, 60.0), 0, hear)
    return SharedTaker(path, hear)


def live(kind: str, side: str, path: str) -> None:
    import torch

    from everface.core.block import Block

    if side == "giver":
        giver = open_giver(kind, path)
        for index in count():
            giver.put(Block(1, 0, index, 0, 12, torch.zeros(30_000)))
    taker = open_taker(kind, path)
    while side == "taker":
        taker.take(60.0)
    threading.Event().wait()


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()  # nothing but this thread runs yet
        if child:
            print(child, flush=True)
            continue
        try:
            live(*line.split())
        finally:
            os._exit(1)
