"""The other process of a channel. It imports torch once, forks for each line `KIND SIDE PATH` of its input and prints the child's id.

A `receiver` receives whatever comes, a `sleeper` listens and receives nothing, a `sender` sends blocks without end, a `giant` big
ones; an `echo` on the first GPU sends back, at PATH with a 1 for its last 0, what it receives.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count

import torch

from everface.runtime.messages import Block
from everface.runtime.transport.selection import open_receiver, open_sender


@contextlib.contextmanager
def peer_processes() -> Iterator[Callable[[str, str, str], int]]:
    """A function (kind, side, path) that starts a peer and returns its process id. None of them outlives the context."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as host:  # fmt: skip
        stdin, stdout = host.stdin, host.stdout
        assert stdin and stdout

        peers: list[int] = []

        def start(kind: str, side: str, path: str) -> int:
            stdin.write(f"{kind} {side} {path}\n")
            peers.append(int(stdout.readline()))
            return peers[-1]

        try:
            yield start
        finally:
            for peer in peers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(peer, signal.SIGKILL)


def serve(kind: str, side: str, path: str) -> None:
    if side in ("sender", "giant"):
        sender = open_sender(kind, path)
        latent = torch.zeros(30_000 if side == "sender" else 16_000_000)
        for index in count():
            sender.send(Block(1, 0, index, 0, 12, latent))
    if side == "echo":
        back = open_sender(kind, f"{path[:-1]}1", "cuda:0")
        there = open_receiver(kind, path, back.send, "cuda:0")
        while message := there.receive(60.0):
            back.send(message)
    receiver = open_receiver(kind, path, print)
    while side == "receiver":
        receiver.receive(60.0)
    threading.Event().wait()


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()  # this is the only thread yet
        if child:
            print(child, flush=True)
            continue
        try:
            serve(*line.split())
        finally:
            os._exit(1)
