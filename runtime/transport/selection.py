"""Which transport joins two stages: selected once, when the channel is made, and logged with the reason.

| kind     | between                                          | a block moves                                           |
|----------|--------------------------------------------------|---------------------------------------------------------|
| `local`  | two roles of one process                         | not at all: the object is passed on                     |
| `ipc`    | two processes on one GPU                         | within the GPU's memory                                 |
| `nccl`   | two processes on two GPUs                        | from GPU to GPU, not through host memory                |
| `shared` | two processes                                    | through memory that both have mapped: one copy each way |
| `gloo`   | two hosts; a system without Unix sockets         | through TCP                                             |
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Generator
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
from everface.runtime.transport.gloo import GlooReceiver, GlooSender, Network, join_pair
from everface.runtime.transport.nccl import NcclReceiver, NcclSender, open_libraries
from everface.runtime.transport.shared_memory import CONNECT_S, SharedReceiver, SharedSender

CAPACITY = 4 << 20  # bytes of an nccl slot; a block of 704x384 between two steps takes 0.7 MB, with another image 5.8


@dataclass(frozen=True)
class Selected:
    """The transport of one channel, a kind of the table above, and why it was selected."""

    kind: str
    reason: str


def select(sender: str, receiver: str, same_process: bool) -> Selected:
    """The best transport that this installation has from the device of one stage to that of the next, as torch names devices."""
    selected = Selected("local", "one process") if same_process else _between(torch.device(sender), torch.device(receiver))
    log.info("channel %s to %s: %s, %s", sender, receiver, selected.kind, selected.reason)
    return selected


def _between(sender: torch.device, receiver: torch.device) -> Selected:
    sockets = hasattr(socket, "AF_UNIX")
    host = Selected("shared", "two processes of one host") if sockets else Selected("gloo", "this system has no Unix sockets")
    if sender.type != "cuda" or receiver.type != "cuda":
        return host
    if (sender.index or 0) == (receiver.index or 0):
        best, missing = Selected("ipc", "two processes on one GPU"), missing_for_ipc()
    else:
        best, missing = Selected("nccl", "two GPUs"), missing_for_nccl()
    return Selected(host.kind, f"{host.reason}, because {best.kind} cannot be used: {missing}") if missing else best


def missing_for_ipc() -> str | None:
    """Why two processes cannot share the memory of one GPU here, or None."""
    if sys.platform != "linux":
        return "CUDA shares memory between processes on Linux only"
    try:
        native.find_cudart()
    except Unavailable as error:
        return str(error)
    return None


def missing_for_nccl() -> str | None:
    """Why NCCL cannot be used here, or None."""
    try:
        native.need("the nccl transport")
        native.find_nccl()
        native.find_cudart()
    except Unavailable as error:
        return str(error)
    return None


def open_sender(
    kind: str,
    path: str,
    device: str = "cpu",
    slots: int = SLOTS,
    timeout_s: float = 120.0,
    connect_s: float = CONNECT_S,
    capacity: int = CAPACITY,
    network: Network | None = None,
) -> Sender:
    """The upstream end of a channel between processes. Both ends name the same unused `path`, in a folder that only they use.

    `shared` and `ipc` return at once and connect in the background; `gloo` and `nccl` wait for the other end. So a stage opens
    its receiver first, and the process that feeds the first stage opens its sender first. The folder must exist until both ends
    are open.

    device: where this process's stage is. slots: blocks that may be in the channel. timeout_s: for a send to get a slot.
    connect_s: for the other end to connect. capacity: bytes of a slot, for `nccl`; larger blocks go through host memory. network: for `gloo` between hosts.
    Raises ChannelError if the other end does not connect, Unavailable without the libraries that the kind needs.
    """
    if kind == "gloo":
        return GlooSender(join_pair(path, 0, connect_s, network), 1, slots, timeout_s)
    control, on = SharedSender(path, slots, timeout_s, connect_s), torch.device(device)
    with _aborted_on_error(control):
        if kind == "ipc":
            return IpcSender(control, on, slots)
        if kind == "nccl":
            libraries = open_libraries()
            id = libraries.nccl.new_id()
            Path(f"{path}.new").write_bytes(id)
            os.replace(f"{path}.new", f"{path}.id")  # complete as soon as it exists
            return NcclSender(control, libraries, id, on, capacity, timeout_s)
    return control


def open_receiver(
    kind: str,
    path: str,
    on_cancel: OnCancel | None,
    device: str = "cpu",
    timeout_s: float = 120.0,
    connect_s: float = CONNECT_S,
    capacity: int = CAPACITY,
    signal: Signal | None = None,
    network: Network | None = None,
) -> Receiver:
    """The downstream end; see `open_sender`. `on_cancel` is called from the channel's thread; `signal` is set at each arrival."""
    if kind == "gloo":
        return GlooReceiver(join_pair(path, 1, connect_s, network), 0, on_cancel, timeout_s, signal)
    control, on = SharedReceiver(path, on_cancel, timeout_s, connect_s, signal), torch.device(device)
    with _aborted_on_error(control):
        if kind == "ipc":
            return IpcReceiver(control, on)
        if kind == "nccl":
            return NcclReceiver(control, open_libraries(), _read_id(Path(f"{path}.id"), connect_s), on, capacity, timeout_s)
    return control


def _read_id(file: Path, connect_s: float) -> bytes:
    end_s = time.monotonic() + connect_s
    while not file.exists():
        if time.monotonic() > end_s:
            raise ChannelError(f"the previous stage did not open its end for {connect_s:g} s")
        time.sleep(0.01)
    id = file.read_bytes()
    file.unlink()
    return id


@contextmanager
def _aborted_on_error(control: SharedSender | SharedReceiver) -> Generator[None, None, None]:
    """End `control` if the end that uses it cannot be opened."""
    try:
        yield
    except BaseException:
        control.abort("the channel could not be opened")
        control.join()
        raise
