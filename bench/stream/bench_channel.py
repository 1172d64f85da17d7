"""The cost of a channel between two processes, gloo and shared memory, for the tensors that are sent at 704x384.

    python -m pytest bench/stream/bench_channel.py --benchmark-json FILE    all
    python -m pytest bench/stream/bench_channel.py --benchmark-disable      each once, to see that it works

`test_round_trip` times one block there and back between two processes that do nothing else; one way takes half of it.
`test_one_way` times 20 blocks that another process receives as fast as it can, until it replies that it has them all.
`extra_info` has p50 and p99 and the throughput. The numbers mean something only on a quiet machine with a core for each process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bench.rows import commit

pytest.importorskip("msgspec")  # a channel between processes packs its headers with it

from everface.runtime.messages import Block, CloseSession
from everface.runtime.transport.selection import open_receiver, open_sender

SHAPES = {  # of a block's x
    "latent 50 KB": (16, 3, 16, 32),
    "latent 400 KB": (16, 3, 48, 88),
    "frames 10 MB": (12, 384, 704, 3),
}
ROUNDS = {"latent 50 KB": 1000, "latent 400 KB": 1000, "frames 10 MB": 100}
BATCH = 20  # blocks of a one-way round
WAIT_S = 60.0

# Sends back every block that is marked as last and every CloseSession; drops other blocks.
PEER = """
import sys
sys.path[:] = {path!r}
import torch
from everface.runtime.messages import CloseSession
from everface.runtime.transport.selection import open_sender, open_receiver
torch.set_num_threads(1)
there = open_receiver({kind!r}, {folder!r} + "/0.0", print)
back = open_sender({kind!r}, {folder!r} + "/0.1")
while True:
    message = there.receive(3600.0)
    if isinstance(message, CloseSession) or message.last:
        back.send(message)
"""


class PeerProcess:
    """Another process, and this process's ends of two channels to it, there and back."""

    def __init__(self, kind: str):
        torch.set_num_threads(1)
        self.folder = tempfile.TemporaryDirectory(prefix="channel")
        at = self.folder.name
        self.process = subprocess.Popen([sys.executable, "-c", PEER.format(path=sys.path, kind=kind, folder=at)])
        self.there, self.back = open_sender(kind, f"{at}/0.0"), open_receiver(kind, f"{at}/0.1", print)
        if not (self.there.wait_connected(WAIT_S) and self.back.wait_connected(WAIT_S)):
            raise RuntimeError("the other process did not connect")

    def round_trip(self, block: Block) -> Block:
        self.there.send(block)
        reply = self.back.receive(WAIT_S)
        assert isinstance(reply, Block) and reply.x.shape == block.x.shape
        return reply

    def one_way(self, block: Block) -> None:
        for _ in range(BATCH):
            self.there.send(block)
        self.there.send(CloseSession(1))
        assert isinstance(self.back.receive(WAIT_S), CloseSession)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for end in (self.there, self.back):
            end.abort()
            end.join()
        self.folder.cleanup()


@pytest.fixture(params=["gloo", "shared"])
def peer(request: pytest.FixtureRequest) -> Iterator[PeerProcess]:
    opened = PeerProcess(request.param)
    yield opened
    opened.close()


def make_block(what: str, last: bool) -> Block:
    shape = SHAPES[what]
    x = torch.randint(0, 256, shape, dtype=torch.uint8) if "frames" in what else torch.randn(shape).bfloat16()
    return Block(1, 0, 0, 0, 12, x, {}, last)


def note(benchmark: Any, block: Block, blocks: int) -> None:
    benchmark.extra_info.update(commit=commit(), torch=torch.__version__, bytes=block.x.nbytes)
    if benchmark.stats is None:  # --benchmark-disable
        return
    times_s = benchmark.stats.stats.sorted_data
    p50_s, p99_s = (times_s[min(len(times_s) - 1, int(share * len(times_s)))] / blocks for share in (0.5, 0.99))
    benchmark.extra_info.update(p50_us=1e6 * p50_s, p99_us=1e6 * p99_s, mb_per_s=block.x.nbytes / p50_s / 1e6)


@pytest.mark.parametrize("what", SHAPES)
def test_round_trip(benchmark: Any, peer: PeerProcess, what: str) -> None:
    block = make_block(what, last=True)
    assert torch.equal(peer.round_trip(block).x, block.x)
    benchmark.pedantic(peer.round_trip, (block,), rounds=ROUNDS[what], warmup_rounds=20)
    note(benchmark, block, 1)


@pytest.mark.parametrize("what", SHAPES)
def test_one_way(benchmark: Any, peer: PeerProcess, what: str) -> None:
    block = make_block(what, last=False)
    benchmark.pedantic(peer.one_way, (block,), rounds=ROUNDS[what] // 10, warmup_rounds=2)
    note(benchmark, block, BATCH)
