"""Gloo and shared memory between real processes: what passes, what waits, what a death costs, and that nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
import toy

from everface.core.errors import BadInput
from everface.runtime import shared
from everface.runtime.messages import Block, CloseSession, OpenSession
from everface.runtime.stage import Cancel, Stop
from everface.runtime.transport.base import ChannelError, LocalChannel
from everface.runtime.transport.selection import open_receiver, open_sender
from everface.runtime.transport.shared_memory import SharedReceiver, SharedSender

KINDS = ("gloo", "shared")


def block(index: int) -> Block:
    return Block(1, 0, index, index * 7680, 12, toy.noise(index), {"audio": torch.full((3,), float(index))})


def frames(index: int, size: int) -> Block:
    return Block(1, 0, index, 0, 12, torch.randint(0, 256, (size,), dtype=torch.uint8), last=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="channel") as name:  # tmp_path can be longer than a socket's path may be
        yield Path(name)


def open_both(kind: str, path: Path, on_cancel: Callable[[Cancel], None] = print, timeout_s: float = 60.0) -> tuple[Any, Any]:
    """Both ends in this process."""
    receivers: list = []
    opening = threading.Thread(target=lambda: receivers.append(open_receiver(kind, str(path), on_cancel)))
    opening.start()
    sender = open_sender(kind, str(path), timeout_s=timeout_s)
    opening.join()
    return sender, receivers[0]


def close_both(*ends: Any) -> None:
    for end in ends:
        end.abort()
    for end in ends:
        end.join()


def left() -> tuple[int, int, int]:
    """Open files, threads and mapped memory files of this process."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps.count("everface channel")


def left_at_last(base: tuple[int, int, int]) -> tuple[int, int, int]:
    """What is left once it is `base`, or still after five seconds: the system may list a thread for a moment after it was joined."""
    end_s = time.monotonic() + 5
    while left() != base and time.monotonic() < end_s:
        time.sleep(0.01)
    return left()


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts files and threads in /proc")


@pytest.mark.parametrize("kind", KINDS)
def test_messages_pass_bit_for_bit_in_order(kind: str, folder: Path) -> None:
    cancels: list[Cancel] = []
    sender, receiver = open_both(kind, folder / "0.0", cancels.append)
    assert sender.wait_connected(10.0) and receiver.wait_connected(10.0)
    opening = OpenSession(1, {"picture": torch.randn(6_000_000), "strided": torch.randn(700, 30).t()}, {"seed": 3})
    said = [opening, *(frames(i, size) for i, size in enumerate((9_700_000, 10, 5000, 0, 2_000_000))), block(5), CloseSession(1)]

    def give() -> None:
        for message in said:
            sender.send(message)
        sender.send(Cancel(1, 4))
        sender.send(Stop())

    giving = threading.Thread(target=give)
    giving.start()
    got = [receiver.receive(30.0) for _ in range(len(said) + 1)]
    giving.join()
    assert [type(m) for m in got] == [*(type(m) for m in said), Stop] and cancels == [Cancel(1, 4)]
    for a, b in zip(map(serialization.pack, said), map(serialization.pack, filter(None, got))):
        assert a.head == b.head and all(torch.equal(x, y) for (_, x), (_, y) in zip(a.tensors, b.tensors, strict=True))
    close_both(sender, receiver)


def test_five_hundred_messages_of_any_size_with_epochs_among_them(folder: Path) -> None:
    cancels: list[Cancel] = []
    sender, receiver = open_both("shared", folder / "0.0", cancels.append)
    rng = random.Random(5)
    said = [(index, rng.choice((0, 1, 3000, 70_000, 400_000)) + rng.randrange(5000)) for index in range(500)]

    def give() -> None:
        for index, size in said:
            sender.send(Block(1, 0, index, 0, 12, torch.full((size,), index % 251, dtype=torch.uint8)))

    def interrupt() -> None:
        for revision in range(200):
            sender.send(Cancel(1, revision))

    threads = [threading.Thread(target=act) for act in (give, interrupt)]
    for thread in threads:
        thread.start()
    for index, size in said:
        message = receiver.receive(30.0)
        assert isinstance(message, Block) and message.index == index and message.x.shape == (size,)
        assert bool((message.x == index % 251).all())
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 10
    while len(cancels) < 200 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [notice.revision for notice in cancels] == list(range(200))
    close_both(sender, receiver)


def test_what_was_taken_is_the_takers_own(folder: Path) -> None:
    sender, receiver = open_both("shared", folder / "0.0")
    kept = []
    for index in range(20):
        sender.send(frames(index, 100_000))
        message = receiver.receive(10.0)
        assert isinstance(message, Block)
        kept.append((message.x, message.x.clone()))
    close_both(sender, receiver)
    assert all(torch.equal(x, copy) for x, copy in kept) and len({x.data_ptr() for x, _ in kept}) == 20


def test_a_slot_grows_and_shrinks_with_its_messages(folder: Path) -> None:
    sender, receiver = open_both("shared", folder / "0.0")
    sizes = []
    for size in (5000, 40_000_000, 40_000_000, 100_000, 100_000, 150_000, 150_000):
        sender.send(frames(0, size))
        assert isinstance(receiver.receive(10.0), Block)
        sizes.append([memory.numel() if memory is not None else 0 for memory in sender._memory])
    close_both(sender, receiver)
    assert sizes[2] == [1 << 26, 1 << 26] and sizes[4] == [1 << 17, 1 << 17] and sizes[6] == [1 << 18, 1 << 18]


@pytest.mark.parametrize("kind", [*KINDS, "local"])
def test_wake_ends_a_take_at_once(kind: str, folder: Path) -> None:
    sender, receiver = [LocalChannel()] * 2 if kind == "local" else open_both(kind, folder / "0.0")
    threading.Timer(0.1, receiver.wake).start()
    begin = time.monotonic()
    assert receiver.receive(60.0) is None and time.monotonic() - begin < 10
    receiver.wake()  # nobody waits: the next take does not either
    receiver.wake()
    assert receiver.receive(60.0) is None
    receiver.wake()
    sender.send(block(7))
    message = next(m for m in iter(lambda: receiver.receive(60.0), "never") if m)  # a wake loses no message
    assert isinstance(message, Block) and message.index == 7
    begin = time.monotonic()
    assert [receiver.receive(0.05) for _ in range(3)] == [None] * 3 and time.monotonic() - begin > 0.05
    close_both(sender, receiver)


PEER = """
import sys
sys.path[:] = {path!r}
from everface.runtime.transport.selection import open_receiver
receiver = open_receiver({kind!r}, {at!r}, lambda notice: print(notice, flush=True))
for stream in sys.stdin:
    print(receiver.receive(60.0).index, flush=True)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_slots_urgency_and_the_death_of_the_peer(kind: str, folder: Path) -> None:
    code = PEER.format(path=sys.path, kind=kind, at=str(folder / "0.0"))
    peer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert peer.stdin and peer.stdout
    sender: Any = open_sender(kind, str(folder / "0.0"), timeout_s=0.25)
    sender.send(block(0))
    sender.send(block(1))
    begin = time.monotonic()
    with pytest.raises(ChannelError, match=r"took nothing for 0.25 s"):
        sender.send(block(2))
    assert 0.25 <= time.monotonic() - begin < 5
    sender.send(Cancel(1, 1))
    assert peer.stdout.readline() == "Cancel(session=1, revision=1)\n"  # overtook both
    peer.stdin.write("\n")
    assert peer.stdout.readline() == "0\n"
    sender._timeout_s = 60.0
    sender.send(block(2))  # the slot of block 0
    threading.Timer(0.2, peer.kill).start()
    begin = time.monotonic()
    with pytest.raises(ChannelError, match="went away"):
        sender.send(block(3))
    assert time.monotonic() - begin < 10
    sender.join()
    assert not sender.thread.is_alive()
    peer.communicate()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_received_before_the_end_can_still_be_had(kind: str, folder: Path) -> None:
    sender, receiver = open_both(kind, folder / "0.0")
    sender.send(block(0))
    sender.send(frames(1, 200_000))
    sender.send(Stop())
    deadline = time.monotonic() + 10
    while len(receiver._messages) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    begin = time.monotonic()
    sender.abort()
    assert [type(receiver.receive(10.0)) for _ in range(3)] == [Block, Block, Stop]
    with pytest.raises(ChannelError, match="went away"):
        receiver.receive(10.0)
    assert time.monotonic() - begin < 60  # gloo loses one in five of the credits that cross the end: ten seconds, not two minutes
    close_both(sender, receiver)


@pytest.mark.parametrize("kind", KINDS)
def test_abort_wakes_a_put_that_waits(kind: str, folder: Path) -> None:
    sender, receiver = open_both(kind, folder / "0.0")
    sender.send(block(0))
    sender.send(block(1))
    threading.Timer(0.1, sender.abort, ("pulled",)).start()
    with pytest.raises(ChannelError, match="pulled"):
        sender.send(block(2))
    close_both(sender, receiver)


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_the_other_end_never_comes(side: str, folder: Path) -> None:
    path = str(folder / "0.0")
    end = SharedSender(path, join_s=0.1) if side == "sender" else SharedReceiver(path, print, join_s=0.1)
    with pytest.raises(ChannelError, match=r"for 0.1 s"):
        end.send(block(0)) if isinstance(end, SharedSender) else end.receive(60.0)
    end.join()
    assert not list(folder.iterdir())
    late = SharedSender(path) if side == "sender" else SharedReceiver(path, print)
    assert not late.wait_connected(0.05)
    begin = time.monotonic()
    late.abort("enough")  # ends the look-out, which has a minute left
    late.join()
    assert time.monotonic() - begin < 10
    assert not list(folder.iterdir())


def test_a_path_too_long_for_a_socket() -> None:
    with pytest.raises(BadInput, match="shorter temporary folder"):
        SharedReceiver("/tmp/" + "x" * 200, print)


def test_records_that_make_no_sense_break_the_hop(folder: Path) -> None:
    for record in (shared.RECORD.pack(shared.SLOT, 0, 100), shared.RECORD.pack(shared.INLINE, 0, 1 << 40), shared.RECORD.pack(9, 0, 1)):
        sender, receiver = open_both("shared", folder / "0.0")
        sender._connected_stream().send(record)
        with pytest.raises(ChannelError, match=r"the stage before went away: a (record of kind|message of)"):
            receiver.receive(10.0)
        close_both(sender, receiver)


def test_without_memory_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    sender, receiver = open_both("shared", folder / "0.0")
    sent = frames(0, 300_000)
    sender.send(sent)
    message = receiver.receive(10.0)
    assert isinstance(message, Block) and torch.equal(message.x, sent.x)
    close_both(sender, receiver)
    assert not list(folder.iterdir())


@needs_proc
@pytest.mark.parametrize(("kind", "times"), [("shared", 200), pytest.param("gloo", 200, marks=pytest.mark.slow)])
def test_two_hundred_hops_leave_nothing(kind: str, times: int, folder: Path) -> None:
    base = left()
    for turn in range(times):
        sender, receiver = open_both(kind, folder / f"0.{turn}")
        if turn % 3:
            sender.send(frames(0, 100_000))
        if turn % 3 == 2:
            assert isinstance(receiver.receive(10.0), Block)
        first, second = (sender, receiver) if turn % 2 else (receiver, sender)
        first.abort()
        first.join()
        close_both(second)
    del sender, receiver, first, second
    assert left_at_last(base) == base


@needs_proc
@pytest.mark.parametrize("kind", KINDS)
def test_hops_are_rebuilt_while_their_peers_are_killed(kind: str, folder: Path) -> None:
    """This process lives on; each generation's peer is killed, or stopped and then killed, in the midst of its work."""
    host = subprocess.Popen(
        [sys.executable, peers.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert host.stdin and host.stdout
    base = left()
    for turn in range(12):
        side, stopped = ("receiver", "sleeper", "sender")[turn % 3], turn % 2
        path = str(folder / f"{turn}.0")
        host.stdin.write(f"{kind} {side} {path}\n")
        peer = int(host.stdout.readline())
        end: Any = open_receiver(kind, path, print) if side == "sender" else open_sender(kind, path, timeout_s=0.2)
        assert end.wait_connected(60.0)
        if side == "sender":
            assert isinstance(end.receive(60.0), Block)
        else:
            end.send(block(0))
        if stopped:
            os.kill(peer, signal.SIGSTOP)
            if side != "sender":
                with pytest.raises(ChannelError, match=r"took nothing for 0.2 s|nothing passed in time"):
                    for index in range(1, 5):
                        end.send(block(index))
                end.abort()
                end.join()  # while the peer still stands
        os.kill(peer, signal.SIGKILL)
        if not stopped:
            begin = time.monotonic()
            with pytest.raises(ChannelError, match=r"went away|cannot be reached"):
                while time.monotonic() < begin + 20:
                    end.receive(20.0) if side == "sender" else end.send(frames(1, 50_000))
            assert time.monotonic() - begin < 15
        end.abort()
        end.join()
    del end
    assert left_at_last(base) == base
    host.communicate()
