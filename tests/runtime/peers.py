"""The other process of a hop: imported once, then forked for each line `KIND SIDE PATH` of its input, whose process id it prints.

A `taker` takes whatever comes, a `sleeper` listens and takes nothing, a `giver` gives blocks without end; an `echo` on the first GPU
gives back, at PATH with a 1 for its last 0, what it takes.
"""

import os
import sys
import threading
from itertools import count

from everface.runtime.carrier import open_giver, open_taker


def live(kind: str, side: str, path: str) -> None:
    import torch

    from everface.core.block import Block

    if side == "giver":
        giver = open_giver(kind, path)
        for index in count():
            giver.put(Block(1, 0, index, 0, 12, torch.zeros(30_000)))
    if side == "echo":
        back = open_giver(kind, f"{path[:-1]}1", "cuda:0")
        there = open_taker(kind, path, back.put, "cuda:0")
        while message := there.take(60.0):
            back.put(message)
    taker = open_taker(kind, path, print)
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
