"""Which kind of channel joins two stages: decided once, when the channel is made, said aloud, and why.

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
from everface.runtime.signal import Signal
from everface.runtime.transport.base import SLOTS, ChannelError, OnCancel, Receiver, Sender
from everface.runtime.transport.cuda_ipc import IpcReceiver, IpcSender
from everface.runtime.transport.gloo import GlooReceiver, GlooSender, join_pair
from everface.runtime.transport.nccl import NcclReceiver, NcclSender, open_libraries
from everface.runtime.transport.shared_memory import JOIN_S, SharedReceiver, SharedSender

CAPACITY = 4 << 20  # bytes of an nccl slot; a block of 704x384 between two steps takes 0.7 MB


@dataclass(frozen=True)
class Selected:
    """The carrier of one channel, a kind of the table above, and why it was taken."""

    kind: str
    why: str


def select(sender: str, receiver: str, same_process: bool) -> Selected:
    """The best carrier from the device of one stage to that of the next, as torch names them, that this installation has."""
    selected = Selected("local", "one process") if same_process else _between(torch.device(sender), torch.device(receiver))
    log.info("channel %s to %s: %s, %s", sender, receiver, selected.kind, selected.why)
    return selected


def _between(sender: torch.device, receiver: torch.device) -> Selected:
    sockets = hasattr(socket, "AF_UNIX")
    host = Selected("shared", "two processes of one host") if sockets else Selected("gloo", "this system has no Unix sockets")
    if sender.type != "cuda" or receiver.type != "cuda":
        return host
    if (sender.index or 0) == (receiver.index or 0):
        kind, why, lack = "ipc", "two processes on one GPU", lack_of_ipc()
    else:
        kind, why, lack = "nccl", "two GPUs", lack_of_nccl()
    return Selected(host.kind, f"{host.why}, for nothing better is here: {lack}") if lack else Selected(kind, why)


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


def open_sender(
    kind: str,
    path: str,
    device: str = "cpu",
    slots: int = SLOTS,
    timeout_s: float = 120.0,
    join_s: float = JOIN_S,
    capacity: int = CAPACITY,
) -> Sender:
    """The upstream end of a channel between processes. Both ends name the same `path`, unused so far, in a folder of their own.

    `shared` and `ipc` answer at once and wait_connected in the background; `gloo` and `nccl` wait for the other end. So whoever opens both ends
    of a stage opens its receiver first, and whoever feeds the first stage its sender. The folder stays until both ends are open.
    `capacity`: bytes of the largest block, for `nccl`.
    Raises ChannelError if the other end does not come, Unavailable without the libraries that the kind needs.
    """
    if kind == "gloo":
        return GlooSender(join_pair(path, 0, join_s), 1, slots, timeout_s)
    control, at = SharedSender(path, slots, timeout_s, join_s), torch.device(device)
    with _undone(control):
        if kind == "ipc":
            return IpcSender(control, at, slots)
        if kind == "nccl":
            libraries = open_libraries()
            id = libraries.nccl.new_id()
            Path(f"{path}.new").write_bytes(id)
            os.replace(f"{path}.new", f"{path}.id")  # whole as soon as it is there
            return NcclSender(control, libraries, id, at, capacity, timeout_s)
    return control


def open_receiver(
    kind: str,
    path: str,
    on_cancel: OnCancel | None,
    device: str = "cpu",
    timeout_s: float = 120.0,
    join_s: float = JOIN_S,
    capacity: int = CAPACITY,
    signal: Signal | None = None,
) -> Receiver:
    """The downstream end; see `open_sender`."""
    if kind == "gloo":
        return GlooReceiver(join_pair(path, 1, join_s), 0, on_cancel, timeout_s, signal)
    control, at = SharedReceiver(path, on_cancel, timeout_s, join_s, signal), torch.device(device)
    with _undone(control):
        if kind == "ipc":
            return IpcReceiver(control, at)
        if kind == "nccl":
            return NcclReceiver(control, open_libraries(), _read_id(Path(f"{path}.id"), join_s), at, capacity, timeout_s)
    return control


def _read_id(file: Path, join_s: float) -> bytes:
    end_s = time.monotonic() + join_s
    while not file.exists():
        if time.monotonic() > end_s:
            raise ChannelError(f"the stage before did not open its end for {join_s:g} s")
        time.sleep(0.01)
    id = file.read_bytes()
    file.unlink()
    return id


@contextmanager
def _undone(control: SharedSender | SharedReceiver) -> Iterator[None]:
    """Take the control back if what stands beside it cannot be opened."""
    try:
        yield
    except BaseException:
        control.abort("the channel could not be opened")
        control.join()
        raise
