"""Which transport a channel gets, what opening one needs, and blocks between two processes of one GPU where there is one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from tests.runtime.transport.peer_process import peer_processes

from everface.core import native
from everface.core.errors import Unavailable
from everface.runtime.messages import Block, Cancel, Stop
from everface.runtime.transport import selection
from everface.runtime.transport.cuda_runtime import HANDLE_BYTES, CudaRuntime
from everface.runtime.transport.selection import open_receiver, open_sender, select

KIND_OF = {
    ("cpu", "cpu", True): "local",
    ("cuda:0", "cuda:0", True): "local",
    ("cpu", "cpu", False): "shared",
    ("cpu", "cuda:0", False): "shared",
    ("cuda:1", "cpu", False): "shared",
    ("cuda:0", "cuda:0", False): "ipc",
    ("cuda", "cuda:0", False): "ipc",
    ("cuda:0", "cuda:1", False): "nccl",
}


@pytest.mark.parametrize("devices", KIND_OF)
def test_the_best_transport_where_nothing_is_missing(
    devices: tuple[str, str, bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "missing_for_ipc", lambda: None)
    monkeypatch.setattr(selection, "missing_for_nccl", lambda: None)
    with caplog.at_level(logging.INFO, "everface"):
        selected = select(*devices)
    assert selected.kind == KIND_OF[devices] and selected.reason
    assert caplog.messages == [f"channel {devices[0]} to {devices[1]}: {selected.kind}, {selected.reason}"]


def test_the_reason_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, native.MODULE, None)  # not built
    selected = select("cuda:0", "cuda:1", False)
    assert selected.kind == "shared" and "everface._native, which is not built" in selected.reason
    monkeypatch.setattr(sys, "platform", "darwin")
    assert select("cuda:0", "cuda:0", False).kind == "shared"
    monkeypatch.delattr(socket, "AF_UNIX")
    assert select("cpu", "cpu", False).kind == "gloo"


def no_library() -> str:
    raise Unavailable("no such library here")


@pytest.mark.parametrize("kind", ["ipc", "nccl"])
def test_what_cannot_be_opened_leaves_nothing(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_cudart", no_library)
    monkeypatch.setitem(sys.modules, native.MODULE, None)
    files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    path = str(folder / "0.0")
    for opened in (lambda: open_sender(kind, path, "cuda:0"), lambda: open_receiver(kind, path, print, "cuda:0")):
        with pytest.raises(Unavailable):
            opened()
    assert not os.listdir(folder)
    assert not files or len(os.listdir("/proc/self/fd")) == files


def test_an_error_of_cuda_is_reported_with_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real library where there is one: without a device each call is refused, and a handle is passed by value."""
    found = [p for p in ("/usr/local/cuda/lib64/libcudart.so", "/usr/local/cuda/lib/libcudart.so") if Path(p).exists()]
    if not found or torch.cuda.is_available():
        pytest.skip("needs the CUDA runtime and no GPU")
    monkeypatch.setattr(native, "find_cudart", lambda: found[0])
    runtime = CudaRuntime()
    for call in (lambda: runtime.allocate(1 << 20), lambda: runtime.export(1 << 20), lambda: runtime.open(bytes(HANDLE_BYTES))):
        with pytest.raises(Unavailable, match=r"^CUDA cannot .*: .+; free GPU memory, or choose the placement"):
            call()


def gpu_block(index: int, device: str) -> Block:
    made = torch.Generator(device).manual_seed(index)
    size = 200_000 if index != 20 else 3_000_000  # one outgrows its slot
    condition = {"audio": torch.randn(3, 5, index % 7, device=device, generator=made), "x": torch.tensor(index)}
    return Block(1, 0, index, 0, 12, torch.randn(size, device=device, generator=made).bfloat16(), condition)


@pytest.mark.gpu
def test_blocks_stay_on_one_gpu_and_channels_are_opened_again(folder: Path) -> None:
    with peer_processes() as start_peer:
        for turn in range(3):
            there, back = f"{folder}/{turn}.0", f"{folder}/{turn}.1"
            peer = start_peer("ipc", "echo", there)
            cancels: list[Cancel] = []
            receiver = open_receiver("ipc", back, cancels.append, "cuda:0")
            sender = open_sender("ipc", there, "cuda:0")
            for index in range(40):
                sent = gpu_block(index, "cuda:0")
                sender.send(sent)
                sent.x.zero_()  # a captured graph overwrites its output
                got = receiver.receive(60.0)
                expected = gpu_block(index, "cuda:0")
                assert isinstance(got, Block) and got.x.is_cuda and torch.equal(got.x, expected.x)
                assert all(torch.equal(got.condition[k].to(v.device), v) for k, v in expected.condition.items())
            sender.send(Cancel(1, 2))
            sender.send(Stop())
            assert isinstance(receiver.receive(60.0), Stop) and cancels == [Cancel(1, 2)]
            os.kill(peer, signal.SIGKILL)
            for end in (sender, receiver):
                end.abort()
                end.join()
