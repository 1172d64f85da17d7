"""everface._native without a GPU: it imports without CUDA and NCCL, and blocks pass through a channel over the fakes."""

import ctypes
import gc
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.csrc.conftest import Build

import everface
from everface.core.errors import BadInput
from everface.runtime.messages import Block, Cancel, CloseSession, Message, Stop
from everface.runtime.transport import serialization
from everface.runtime.transport.base import ChannelError
from everface.runtime.transport.local import LocalChannel
from everface.runtime.transport.nccl import Libraries, NcclReceiver, NcclSender

CPU = torch.device("cpu")

IMPORT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("everface._native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
maps = open("/proc/self/maps").read()
assert "libcuda" not in maps and "libnccl" not in maps and "torch" not in sys.modules
try:
    native.ring.Nccl("/nowhere/libnccl.so.2")
except native.ring.Missing as missing:
    print(missing)
"""


class Control(LocalChannel):
    """A channel within this process that serializes its messages, as a channel between processes does."""

    def send(self, message: Message) -> None:
        super().send(serialization.decode(serialization.encode(message)))


@pytest.fixture(scope="module")
def folder(build: Build) -> Path:
    return build()


@pytest.fixture
def at(folder: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Libraries]:
    monkeypatch.delitem(sys.modules, "everface._native", raising=False)
    monkeypatch.setattr(everface, "__path__", [str(package), *everface.__path__])
    from everface.core import native

    ring = native.need("this test").ring
    yield Libraries(ring, ring.Nccl(str(folder / "libfake_nccl.so")), ring.Cuda(str(folder / "libfake_cudart.so")))
    gc.collect()
    assert ctypes.CDLL(str(folder / "libfake_nccl.so")).fakeNcclLive() == 0


def test_imports_without_cuda_and_says_what_is_missing(package: Path) -> None:
    module = package / f"_native{EXTENSION_SUFFIXES[0]}"
    done = subprocess.run([sys.executable, "-c", IMPORT, str(module)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the library /nowhere/libnccl.so.2 cannot be loaded: ")


def test_every_name_of_the_binding_is_documented(at: Libraries) -> None:
    text = (Path(__file__).parents[2] / "docs" / "ring.md").read_text()
    names = [name for name in dir(at.ring) if name[0] != "_"]
    for of in ("Ring", "Nccl", "Cuda"):
        names += [name for name in dir(getattr(at.ring, of)) if name[0] != "_"]
    names += [name for of in (at.ring.Side, at.ring.State) for name in of.__members__]
    assert len(names) > 20 and [name for name in names if not re.search(rf"`[^`]*\b{name}\b", text)] == []


LARGE = (7, 8, 20)


def open_channel(at: Libraries, timeout_s: float = 60.0) -> tuple[NcclSender, NcclReceiver, list[Cancel]]:
    cancels: list[Cancel] = []
    control, id = Control(on_cancel=cancels.append, timeout_s=timeout_s), at.nccl.new_id()
    sender = NcclSender(control, at, id, CPU, 4096, timeout_s)
    return sender, NcclReceiver(control, at, id, CPU, 4096, timeout_s), cancels


def block(index: int) -> Block:
    """Of LARGE, more than a slot holds."""
    seed = torch.Generator().manual_seed(index)
    condition = {
        **({"picture": torch.full((5000,), float(index))} if index in LARGE else {}),
        "audio": torch.randn(index % 5, 7, generator=seed).to(torch.bfloat16),
        "pts": torch.tensor(index),
        "x": torch.tensor([-index]),
        "image": torch.randint(0, 256, (3, 5, 3), dtype=torch.uint8, generator=seed).transpose(0, 1),
    }
    return Block(1, index // 3, index, index * 7680, 12, torch.randn(16, 3, 4, 5, generator=seed), condition, index == 39)


def same(a: Block, b: Block) -> bool:
    if (a.session, a.revision, a.index, a.pts, a.frames, a.last) != (b.session, b.revision, b.index, b.pts, b.frames, b.last):
        return False
    pairs = [(a.x, b.x), *((a.condition[k], b.condition[k]) for k in a.condition)]
    return a.condition.keys() == b.condition.keys() and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def test_blocks_pass_bit_for_bit(at: Libraries) -> None:
    sender, receiver, cancels = open_channel(at)

    def send_all() -> None:
        for index in range(40):
            sent = block(index)
            sender.send(sent)
            sent.x.zero_()  # a captured graph overwrites its output
        sender.send(Cancel(1, 99))
        sender.send(CloseSession(1))
        sender.send(Stop())

    sending = threading.Thread(target=send_all)
    sending.start()
    messages = [receiver.receive(60.0) for _ in range(42)]
    sending.join()
    assert [isinstance(m, Block) and same(m, block(i)) for i, m in enumerate(messages[:40])] == [True] * 40
    assert messages[40:] == [CloseSession(1), Stop()] and cancels == [Cancel(1, 99)] and receiver.receive(0.0) is None
    with pytest.raises(BadInput, match="cannot travel"):
        sender.send(Block(1, 0, 40, 0, 12, torch.zeros(3, dtype=torch.complex64)))
    closing = threading.Thread(target=sender.close)
    closing.start()
    assert receiver.close() and str(receiver.ring.state) == "State.closed"
    closing.join()


def test_two_slots_then_wait_for_credit(at: Libraries) -> None:
    sender, receiver, _ = open_channel(at)
    sent: list[int] = []

    def send_all() -> None:
        for index in range(4):
            sender.send(block(index))
            sent.append(index)

    sending = threading.Thread(target=send_all)
    sending.start()
    sending.join(0.3)
    assert sent == [0, 1]
    for index in range(4):
        message = receiver.receive(60.0)
        assert isinstance(message, Block) and same(message, block(index))
    sending.join()


def test_a_block_that_never_comes_breaks_the_channel_in_time(at: Libraries) -> None:
    sender, receiver, _ = open_channel(at, timeout_s=0.3)
    while str(receiver.ring.state) == "State.joining":
        time.sleep(0.001)
    ring, sender.ring = sender.ring, SimpleNamespace(send=lambda parts, size, stream: 0)
    sender.send(block(0))  # described, and no more
    for reason in ("the previous stage went away: a message did not pass for 300 ms", "a message did not pass for 300 ms"):
        with pytest.raises(ChannelError, match=f"^{reason}$"):
            receiver.receive(60.0)
    assert str(receiver.ring.state) == "State.broken" and str(ring.state) == "State.ready"
    sender.ring = ring
    with pytest.raises(ChannelError, match="did not pass"):
        sender.send(block(1))  # the control channel is broken for both


def test_abort_ends_the_wait_for_a_block(at: Libraries) -> None:
    sender, receiver, _ = open_channel(at)
    threading.Timer(0.1, receiver.abort, ("pulled",)).start()
    with pytest.raises(ChannelError, match="pulled"):
        receiver.receive(60.0)
    with pytest.raises(ChannelError, match="pulled"):
        sender.send(block(0))
    for end in (sender, receiver):
        end.join()
    assert receiver.close()
