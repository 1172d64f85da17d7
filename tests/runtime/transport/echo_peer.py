"""The other process of a channel: imported once, then forked for each stream `KIND SIDE PATH` of its input, whose process id it prints.

A `receiver` takes whatever comes, a `sleeper` listens and takes nothing, a `sender` gives blocks without end; an `echo` on the first GPU
gives back, at PATH with a 1 for its last 0, what it takes.
"""

import os
import sys
import threading
from itertools import count

from everface.runtime.transport.selection import open_receiver, open_sender


def live(kind: str, side: str, path: str) -> None:
    import torch

    from everface.runtime.messages import Block

    if side == "sender":
        sender = open_sender(kind, path)
        for index in count():
            sender.send(Block(1, 0, index, 0, 12, torch.zeros(30_000)))
    if side == "echo":
        back = open_sender(kind, f"{path[:-1]}1", "cuda:0")
        there = open_receiver(kind, path, back.put, "cuda:0")
        while message := there.receive(60.0):
            back.send(message)
    receiver = open_receiver(kind, path, print)
    while side == "receiver":
        receiver.receive(60.0)
    threading.Event().wait()


if __name__ == "__main__":
    for stream in sys.stdin:
        child = os.fork()  # nothing but this thread runs yet
        if child:
            print(child, flush=True)
            continue
        try:
            live(*stream.split())
        finally:
            os._exit(1)
