"""Which carrier a channel gets, what it takes to open one, and blocks between two processes of one GPU where there is one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("msgspec")
import peers
import torch

from everface.core import native
from everface.core.errors import Unavailable
from everface.runtime import serialization
from everface.runtime.messages import Block
from everface.runtime.stage import Cancel, Stop
from everface.runtime.transport.cuda_ipc import HANDLE_BYTES, Runtime
from everface.runtime.transport.selection import choose, open_receiver, open_sender

CHOICES = {
    ("cpu", "cpu", True): "local",
    ("cuda:0", "cuda:0", True): "local",
    ("cpu", "cpu", False): "shared",
    ("cpu", "cuda:0", False): "shared",
    ("cuda:1", "cpu", False): "shared",
    ("cuda:0", "cuda:0", False): "ipc",
    ("cuda", "cuda:0", False): "ipc",
    ("cuda:0", "cuda:1", False): "nccl",
}


@pytest.mark.parametrize("devices", CHOICES)
def test_the_best_carrier_where_all_is_there(devices: tuple[str, str, bool], monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(carrier, "lack_of_ipc", lambda: None)
    monkeypatch.setattr(carrier, "lack_of_nccl", lambda: None)
    with caplog.at_level(logging.INFO, "everface"):
        choice = choose(*devices)
    assert choice.kind == CHOICES[devices] and choice.why
    assert caplog.messages == [f"channel {devices[0]} to {devices[1]}: {choice.kind}, {choice.why}"]  # once, and aloud


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, native.MODULE, None)  # not built
    choice = choose("cuda:0", "cuda:1", False)
    assert choice.kind == "shared" and "everface._native, which is not built" in choice.why
    monkeypatch.setattr(sys, "platform", "darwin")
    assert choose("cuda:0", "cuda:0", False).kind == "shared"
    monkeypatch.delattr(socket, "AF_UNIX")
    assert choose("cpu", "cpu", False).kind == "gloo"


def no_library() -> str:
    raise Unavailable("no such library here")


@pytest.mark.parametrize("kind", ["ipc", "nccl"])
def test_what_cannot_be_opened_leaves_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_cudart", no_library)
    monkeypatch.setitem(sys.modules, native.MODULE, None)
    files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with tempfile.TemporaryDirectory(prefix="channel") as folder:
        for opened in (lambda: open_sender(kind, f"{folder}/0.0", "cuda:0"), lambda: open_receiver(kind, f"{folder}/0.0", print, "cuda:0")):
            with pytest.raises(Unavailable):
                opened()
        assert not os.listdir(folder)
    assert not files or len(os.listdir("/proc/self/fd")) == files


def test_a_described_tensor_keeps_its_dtype_and_shape() -> None:
    for dtype in serialization.DTYPES.values():
        for shape in ((), (0, 3), (2, 3, 4)):
            like = serialization.blank(serialization.describe("x", torch.zeros(shape, dtype=dtype)))
            assert (like.dtype, like.shape, like.device.type) == (dtype, torch.Size(shape), "meta")


def test_what_cuda_refuses_is_said_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the real library where there is one: without a device each call is refused, and a handle travels by value."""
    found = [p for p in ("/usr/local/cuda/lib64/libcudart.so", "/usr/local/cuda/lib/libcudart.so") if Path(p).exists()]
    if not found or torch.cuda.is_available():
        pytest.skip("needs the CUDA runtime and no GPU")
    monkeypatch.setattr(native, "find_cudart", lambda: found[0])
    runtime = Runtime()
    for call in (lambda: runtime.allocate(1 << 20), lambda: runtime.export(1 << 20), lambda: runtime.open(bytes(HANDLE_BYTES))):
        with pytest.raises(Unavailable, match=r"^CUDA does not give .*: .+; choose another carrier"):
            call()


def gpu_block(index: int, device: str) -> Block:
    made = torch.Generator(device).manual_seed(index)
    size = 200_000 if index != 20 else 3_000_000  # one outgrows its slot
    condition = {"audio": torch.randn(3, 5, index % 7, device=device, generator=made), "x": torch.tensor(index)}
    return Block(1, 0, index, 0, 12, torch.randn(size, device=device, generator=made).bfloat16(), condition)


@pytest.mark.gpu
def test_blocks_stay_on_one_gpu_and_hops_are_rebuilt() -> None:
    host = subprocess.Popen(
        [sys.executable, peers.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert host.stdin and host.stdout
    with tempfile.TemporaryDirectory(prefix="channel") as folder:
        for turn in range(3):
            there, back = f"{folder}/{turn}.0", f"{folder}/{turn}.1"
            host.stdin.write(f"ipc echo {there}\n")
            peer = int(host.stdout.readline())
            cancels: list[Cancel] = []
            receiver = open_receiver("ipc", back, cancels.append, "cuda:0")
            sender = open_sender("ipc", there, "cuda:0")
            for index in range(40):
                sent = gpu_block(index, "cuda:0")
                sender.send(sent)
                sent.x.zero_()  # a captured step writes its output anew
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
    host.communicate()
