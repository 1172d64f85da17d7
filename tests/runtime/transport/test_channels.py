"""Every kind of channel between processes of a host: what passes, what waits, and what the death of a process causes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime.transport.channel_ends import KINDS, block, close_both, frames, open_both
from tests.runtime.transport.peer_process import peer_processes

from everface.runtime.messages import Block, Cancel, CloseSession, OpenSession, Stop
from everface.runtime.signal import Signal
from everface.runtime.transport import gloo, serialization
from everface.runtime.transport.base import ChannelError
from everface.runtime.transport.local import LocalChannel
from everface.runtime.transport.selection import open_receiver, open_sender


@pytest.mark.parametrize("kind", KINDS)
def test_messages_pass_bit_for_bit_in_order(kind: str, folder: Path) -> None:
    cancels: list[Cancel] = []
    sender, receiver = open_both(kind, folder / "0.0", cancels.append)
    assert sender.wait_connected(10.0) and receiver.wait_connected(10.0)
    opening = OpenSession(1, {"image": torch.randn(6_000_000), "strided": torch.randn(700, 30).t()}, {"seed": 3})
    sent = [opening, *(frames(i, size) for i, size in enumerate((9_700_000, 10, 5000, 0, 2_000_000))), block(5), CloseSession(1)]

    def send_all() -> None:
        for message in sent:
            sender.send(message)
        sender.send(Cancel(1, 4))
        sender.send(Stop())

    sending = threading.Thread(target=send_all)
    sending.start()
    got = [receiver.receive(30.0) for _ in range(len(sent) + 1)]
    sending.join()
    assert [type(m) for m in got] == [*(type(m) for m in sent), Stop] and cancels == [Cancel(1, 4)]
    for a, b in zip(map(serialization.pack, sent), map(serialization.pack, filter(None, got))):
        assert a.head == b.head and all(torch.equal(x, y) for (_, x), (_, y) in zip(a.tensors, b.tensors, strict=True))
    close_both(sender, receiver)


@pytest.mark.parametrize("kind", [*KINDS, "local"])
def test_the_signal_is_set_at_an_arrival_and_at_a_break(kind: str, folder: Path) -> None:
    arrived = Signal()
    sender, receiver = [LocalChannel(signal=arrived)] * 2 if kind == "local" else open_both(kind, folder / "0.0", signal=arrived)
    assert not arrived.wait(0.05)
    begin = time.monotonic()
    threading.Timer(0.1, sender.send, (block(7),)).start()
    assert arrived.wait(60.0) and time.monotonic() - begin < 10
    message = receiver.receive(0.0)  # it has arrived when the signal is set
    assert isinstance(message, Block) and message.index == 7
    assert receiver.receive(0.0) is None
    for index in range(2):  # nobody waits for the signal: it stays set
        sender.send(block(index))
    for index in range(2):
        message = receiver.receive(60.0)
        assert isinstance(message, Block) and message.index == index
    assert arrived.wait(0.0)
    begin = time.monotonic()
    assert [receiver.receive(0.05) for _ in range(3)] == [None] * 3 and time.monotonic() - begin > 0.05
    assert not arrived.wait(0.0)
    threading.Timer(0.1, sender.abort).start()
    begin = time.monotonic()
    assert arrived.wait(60.0) and time.monotonic() - begin < 10
    with pytest.raises(ChannelError):
        receiver.receive(0.0)
    close_both(sender, receiver)


PEER = """
import sys
sys.path[:] = {path!r}
from everface.runtime.transport.selection import open_receiver
receiver = open_receiver({kind!r}, {at!r}, lambda cancel: print(cancel, flush=True))
for line in sys.stdin:
    print(receiver.receive(60.0).index, flush=True)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_slots_cancels_and_the_death_of_the_peer(kind: str, folder: Path) -> None:
    code = PEER.format(path=sys.path, kind=kind, at=str(folder / "0.0"))
    peer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert peer.stdin and peer.stdout
    sender: Any = open_sender(kind, str(folder / "0.0"), timeout_s=0.25)
    sender.send(block(0))
    sender.send(block(1))
    begin = time.monotonic()
    with pytest.raises(ChannelError, match=r"received nothing for 0.25 s"):
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
def test_what_arrived_before_the_end_can_still_be_received(kind: str, folder: Path) -> None:
    sender, receiver = open_both(kind, folder / "0.0")
    sender.send(block(0))
    sender.send(frames(1, 200_000))
    sender.send(Stop())
    end_s = time.monotonic() + 60
    while len(receiver._messages) < 3 and time.monotonic() < end_s:
        time.sleep(0.001)
    begin = time.monotonic()
    sender.abort()
    assert [type(receiver.receive(10.0)) for _ in range(3)] == [Block, Block, Stop]
    with pytest.raises(ChannelError, match="went away"):
        receiver.receive(10.0)
    assert time.monotonic() - begin < 60  # gloo loses one in five of the credits that meet an end: ten seconds, not two minutes
    close_both(sender, receiver)


@pytest.mark.parametrize("kind", KINDS)
def test_abort_ends_a_send_that_waits(kind: str, folder: Path) -> None:
    sender, receiver = open_both(kind, folder / "0.0")
    sender.send(block(0))
    sender.send(block(1))
    threading.Timer(0.1, sender.abort, ("pulled",)).start()
    with pytest.raises(ChannelError, match="pulled"):
        sender.send(block(2))
    close_both(sender, receiver)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_dies_within_a_message(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gloo, "PASS_S", 1.0)
    with peer_processes() as start_peer:
        for turn, wait_s in enumerate((0.03, 0.05, 0.06, 0.1)):  # most of them are stopped as they send the next 64 MB
            peer = start_peer(kind, "giant", str(folder / f"{turn}.0"))
            receiver: Any = open_receiver(kind, str(folder / f"{turn}.0"), print)
            assert isinstance(receiver.receive(60.0), Block)
            time.sleep(wait_s)
            os.kill(peer, signal.SIGSTOP)
            os.kill(peer, signal.SIGKILL)
            with pytest.raises(ChannelError, match="went away"):
                while receiver.receive(10.0):
                    pass
            receiver.abort()
            receiver.thread.join(10.0)
            assert not receiver.thread.is_alive()
            receiver.join()
