"""everface._native without a GPU: it imports without CUDA and NCCL, and blocks pass a hop over the fakes."""

import ctypes
import gc
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.csrc.conftest import Build

import everface
from everface.runtime.messages import Block, CloseSession
from everface.core.errors import BadInput
from everface.runtime import wire
from everface.runtime.transport.base import Broken, Local
from everface.runtime.transport.nccl import Libraries, NcclGiver, NcclTaker
from everface.runtime.stage import Epoch, Message, Stop

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


class Control(Local):
    """A hop within this process through which only what can travel between processes comes."""

    def put(self, message: Message) -> None:
        super().put(wire.decode(wire.encode(message)))


@pytest.fixture(scope="module")
def folder(build: Build) -> Path:
    pytest.importorskip("pybind11")
    return build()


@pytest.fixture
def at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Libraries]:
    monkeypatch.delitem(sys.modules, "everface._native", raising=False)
    monkeypatch.setattr(everface, "__path__", [str(folder / "package"), *everface.__path__])
    from everface.core import native

    ring = native.need("this test").ring
    yield Libraries(ring, ring.Nccl(str(folder / "libfake_nccl.so")), ring.Cuda(str(folder / "libfake_cudart.so")))
    gc.collect()
    assert ctypes.CDLL(str(folder / "libfake_nccl.so")).fakeNcclLive() == 0


def test_imports_without_cuda_and_says_what_is_missing(folder: Path) -> None:
    [module] = (folder / "package").glob("_native*.so")
    done = subprocess.run([sys.executable, "-c", IMPORT, str(module)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the library /nowhere/libnccl.so.2 cannot be loaded: ")


def test_every_name_of_the_binding_is_documented(at: Libraries) -> None:
    text = (Path(__file__).parents[2] / "docs" / "embed.md").read_text()
    names = [name for name in dir(at.ring) if name[0] != "_"]
    for of in ("Ring", "Nccl", "Cuda"):
        names += [name for name in dir(getattr(at.ring, of)) if name[0] != "_"]
    names += [name for of in (at.ring.Side, at.ring.State) for name in of.__members__]
    assert len(names) > 20 and [name for name in names if not re.search(rf"`[^`]*\b{name}\b", text)] == []


def open_hop(at: Libraries, timeout_s: float = 60.0) -> tuple[NcclGiver, NcclTaker, list[Epoch]]:
    heard: list[Epoch] = []
    control, id = Control(hear=heard.append, timeout_s=timeout_s), at.nccl.new_id()
    giver = NcclGiver(control, at, id, CPU, 4096, timeout_s)
    return giver, NcclTaker(control, at, id, CPU, 4096, timeout_s), heard


def block(index: int) -> Block:
    seed = torch.Generator().manual_seed(index)
    condition = {
        "audio": torch.randn(index % 5, 7, generator=seed).to(torch.bfloat16),
        "pts": torch.tensor(index),
        "x": torch.tensor([-index]),
        "picture": torch.randint(0, 256, (3, 5, 3), dtype=torch.uint8, generator=seed).transpose(0, 1),
    }
    return Block(1, index // 3, index, index * 7680, 12, torch.randn(16, 3, 4, 5, generator=seed), condition, index == 39)


def same(a: Block, b: Block) -> bool:
    if (a.session, a.epoch, a.index, a.pts, a.frames, a.last) != (b.session, b.epoch, b.index, b.pts, b.frames, b.last):
        return False
    pairs = [(a.x, b.x), *((a.condition[k], b.condition[k]) for k in a.condition)]
    return a.condition.keys() == b.condition.keys() and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def test_blocks_pass_bit_for_bit(at: Libraries) -> None:
    giver, taker, heard = open_hop(at)

    def give() -> None:
        for index in range(40):
            sent = block(index)
            giver.put(sent)
            sent.x.zero_()  # a captured step writes its output anew
        giver.put(Epoch(1, 99))
        giver.put(Closing(1))
        giver.put(Stop())

    giving = threading.Thread(target=give)
    giving.start()
    messages = [taker.take(60.0) for _ in range(42)]
    giving.join()
    assert [isinstance(m, Block) and same(m, block(i)) for i, m in enumerate(messages[:40])] == [True] * 40
    assert messages[40:] == [Closing(1), Stop()] and heard == [Epoch(1, 99)] and taker.take(0.0) is None
    with pytest.raises(BadInput, match="does not fit the hop's slots of 4096"):
        giver.put(Block(1, 0, 40, 0, 12, torch.zeros(5000)))
    with pytest.raises(BadInput, match="cannot travel"):
        giver.put(Block(1, 0, 40, 0, 12, torch.zeros(3, dtype=torch.complex64)))
    closing = threading.Thread(target=giver.close)
    closing.start()
    assert taker.close() and str(taker.ring.state) == "State.closed"
    closing.join()


def test_two_slots_then_wait_for_credit(at: Libraries) -> None:
    giver, taker, _ = open_hop(at)
    put: list[int] = []

    def give() -> None:
        for index in range(4):
            giver.put(block(index))
            put.append(index)

    giving = threading.Thread(target=give)
    giving.start()
    giving.join(0.3)
    assert put == [0, 1]
    for index in range(4):
        message = taker.take(60.0)
        assert isinstance(message, Block) and same(message, block(index))
    giving.join()


def test_a_block_that_never_comes_breaks_the_hop_in_time(at: Libraries) -> None:
    giver, taker, _ = open_hop(at, timeout_s=0.3)
    while str(taker.ring.state) == "State.joining":
        time.sleep(0.001)
    ring, giver.ring = giver.ring, SimpleNamespace(send=lambda parts, size, stream: 0)
    giver.put(block(0))  # described, and no more
    for reason in ("the stage before went away: a message did not pass for 300 ms", "a message did not pass for 300 ms"):
        with pytest.raises(Broken, match=f"^{reason}$"):
            taker.take(60.0)
    assert str(taker.ring.state) == "State.broken" and str(ring.state) == "State.ready"
    giver.ring = ring
    with pytest.raises(Broken, match="did not pass"):
        giver.put(block(1))  # the control is broken for both


def test_abort_wakes_who_waits_for_a_block(at: Libraries) -> None:
    giver, taker, _ = open_hop(at)
    threading.Timer(0.1, taker.abort, ("pulled",)).start()
    with pytest.raises(Broken, match="pulled"):
        taker.take(60.0)
    with pytest.raises(Broken, match="pulled"):
        giver.put(block(0))
    for end in (giver, taker):
        end.join()
    assert taker.close()


def test_wake_ends_a_take(at: Libraries) -> None:
    giver, taker, _ = open_hop(at)
    threading.Timer(0.1, taker.wake).start()
    assert taker.take(60.0) is None
    for end in (giver, taker):
        end.abort()
        end.join()
