"""Which kind of hop joins two stages: decided once, when the hop is made, said aloud, and why.

| kind     | between                                   | a block travels                                         |
|----------|-------------------------------------------|---------------------------------------------------------|
| `local`  | two roles of one process                  | not at all: the object is handed over                   |
| `ipc`    | two processes on one GPU                  | within the GPU's memory                                 |
| `nccl`   | two processes on two GPUs                 | from GPU to GPU, without the host's memory              |
| `shared` | two processes                             | through memory that both have mapped: one copy each way |
| `gloo`   | two processes where Unix sockets are not  | through TCP                                             |
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from everface.core import native
from everface.core.errors import Unavailable
from everface.core.log import log
from everface.runtime.handoff import SLOTS, Broken, Giver, GlooGiver, GlooTaker, Hear, Taker, join_pair
from everface.runtime.ipc import IpcGiver, IpcTaker
from everface.runtime.nccl import NcclGiver, NcclTaker, open_libraries
from everface.runtime.shared import JOIN_S, SharedGiver, SharedTaker

CAPACITY = 4 << 20  # bytes of an nccl slot; a block of 704x384 between two steps takes 0.7 MB


@dataclass(frozen=True)
class Choice:
    """The carrier of one hop, a kind of the table above, and why it was taken."""

    kind: str
    why: str


def choose(giver: str, taker: str, same_process: bool) -> Choice:
    """The best carrier from the device of one stage to that of the next, as torch names them, that this installation has."""
    choice = Choice("local", "one process") if same_process else _between(torch.device(giver), torch.device(taker))
    log.info("hop %s to %s: %s, %s", giver, taker, choice.kind, choice.why)
    return choice


def _between(giver: torch.device, taker: torch.device) -> Choice:
    sockets = hasattr(socket, "AF_UNIX")
    host = Choice("shared", "two processes of one host") if sockets else Choice("gloo", "this system has no Unix sockets")
    if giver.type != "cuda" or taker.type != "cuda":
        return host
    if (giver.index or 0) == (taker.index or 0):
        kind, why, lack = "ipc", "two processes on one GPU", lack_of_ipc()
    else:
        kind, why, lack = "nccl", "two GPUs", lack_of_nccl()
    return Choice(host.kind, f"{host.why}, for nothing better is here: {lack}") if lack else Choice(kind, why)


def lack_of_ipc() -> str | None:
    """What keeps two processes from sharing the memory of one GPU here, or None."""
    if sys.platform != "linux":
        return "CUDA shares memory between processes on Linux only"
    try:
        native.find_cudart()
    except Unavailable as lack:
        return str(lack)
    return None


def lack_of_nccl() -> str | None:
    """What keeps NCCL from carrying blocks here, or None."""
    try:
        native.need("the nccl hand-off")
        native.find_nccl()
        native.find_cudart()
    except Unavailable as lack:
        return str(lack)
    return None


def open_giver(
    kind: str,
    path: str,
    device: str = "cpu",
    slots: int = SLOTS,
    timeout_s: float = 120.0,
    join_s: float = JOIN_S,
    capacity: int = CAPACITY,
) -> Giver:
    """The upstream end of a hop between processes. Both ends name the same `path`, unused so far, in a folder of their own.

    `shared` and `ipc` answer at once and meet in the background; `gloo` and `nccl` wait for the other end. So whoever opens both ends
    of a stage opens its taker first, and whoever feeds the first stage its giver. The folder stays until both ends are open.
    `capacity`: bytes of the largest block, for `nccl`.
    Raises Broken if the other end does not come, Unavailable without the libraries that the kind needs.
    """
    if kind == "gloo":
        return GlooGiver(join_pair(path, 0, join_s), 1, slots, timeout_s)
    control, at = SharedGiver(path, slots, timeout_s, join_s), torch.device(device)
    with _undone(control):
        if kind == "ipc":
            return IpcGiver(control, at, slots)
        if kind == "nccl":
            libraries = open_libraries()
            id = libraries.nccl.new_id()
            Path(f"{path}.new").write_bytes(id)
            os.replace(f"{path}.new", f"{path}.id")  # whole as soon as it is there
            return NcclGiver(control, libraries, id, at, capacity, timeout_s)
    return control


def open_taker(
    kind: str,
    path: str,
    hear: Hear,
    device: str = "cpu",
    timeout_s: float = 120.0,
    join_s: float = JOIN_S,
    capacity: int = CAPACITY,
) -> Taker:
    """The downstream end; see `open_giver`."""
    if kind == "gloo":
        return GlooTaker(join_pair(path, 1, join_s), 0, hear, timeout_s)
    control, at = SharedTaker(path, hear, timeout_s, join_s), torch.device(device)
    with _undone(control):
        if kind == "ipc":
            return IpcTaker(control, at)
        if kind == "nccl":
            return NcclTaker(control, open_libraries(), _read_id(Path(f"{path}.id"), join_s), at, capacity, timeout_s)
    return control


def _read_id(file: Path, join_s: float) -> bytes:
    end_s = time.monotonic() + join_s
    while not file.exists():
        if time.monotonic() > end_s:
            raise Broken(f"the stage before did not open its end for {join_s:g} s")
        time.sleep(0.01)
    id = file.read_bytes()
    file.unlink()
    return id


@contextmanager
def _undone(control: SharedGiver | SharedTaker) -> Iterator[None]:
    """Take the control back if what stands beside it cannot be opened."""
    try:
        yield
    except BaseException:
        control.abort("the hop could not be opened")
        control.join()
        raise
