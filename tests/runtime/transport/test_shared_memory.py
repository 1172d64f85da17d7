"""Channels through shared memory: slots, their memory, connecting, and records that are wrong."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.runtime.transport.channel_ends import block, close_both, frames, open_both

from everface.core.errors import BadInput
from everface.runtime.messages import Block, Cancel
from everface.runtime.transport import shared_memory
from everface.runtime.transport.base import ChannelError
from everface.runtime.transport.shared_memory import SharedReceiver, SharedSender


def test_five_hundred_messages_of_any_size_with_cancels_among_them(folder: Path) -> None:
    cancels: list[Cancel] = []
    sender, receiver = open_both("shared", folder / "0.0", cancels.append)
    rng = random.Random(5)
    sizes = [(index, rng.choice((0, 1, 3000, 70_000, 400_000)) + rng.randrange(5000)) for index in range(500)]

    def send_all() -> None:
        for index, size in sizes:
            sender.send(Block(1, 0, index, 0, 12, torch.full((size,), index % 251, dtype=torch.uint8)))

    def interrupt() -> None:
        for revision in range(200):
            sender.send(Cancel(1, revision))

    threads = [threading.Thread(target=act) for act in (send_all, interrupt)]
    for thread in threads:
        thread.start()
    for index, size in sizes:
        message = receiver.receive(30.0)
        assert isinstance(message, Block) and message.index == index and message.x.shape == (size,)
        assert bool((message.x == index % 251).all())
    for thread in threads:
        thread.join()
    end_s = time.monotonic() + 60
    while len(cancels) < 200 and time.monotonic() < end_s:
        time.sleep(0.001)
    assert [cancel.revision for cancel in cancels] == list(range(200))
    close_both(sender, receiver)


def test_a_received_message_belongs_to_the_receiver(folder: Path) -> None:
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


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_the_other_end_never_comes(side: str, folder: Path) -> None:
    path = str(folder / "0.0")
    end = SharedSender(path, connect_s=0.1) if side == "sender" else SharedReceiver(path, print, connect_s=0.1)
    with pytest.raises(ChannelError, match=r"for 0.1 s"):
        end.send(block(0)) if isinstance(end, SharedSender) else end.receive(60.0)
    end.join()
    assert not list(folder.iterdir())
    late = SharedSender(path) if side == "sender" else SharedReceiver(path, print)
    assert not late.wait_connected(0.05)
    begin = time.monotonic()
    late.abort("enough")  # it would try for another minute
    late.join()
    assert time.monotonic() - begin < 10
    assert not list(folder.iterdir())


def test_a_path_too_long_for_a_socket() -> None:
    with pytest.raises(BadInput, match="shorter temporary folder"):
        SharedReceiver("/tmp/" + "x" * 200, print)


def test_records_that_make_no_sense_break_the_channel(folder: Path) -> None:
    pack, slot, inline = shared_memory.RECORD.pack, shared_memory.SLOT, shared_memory.INLINE
    for record in (pack(slot, 0, 100), pack(inline, 0, 1 << 40), pack(9, 0, 1)):
        sender, receiver = open_both("shared", folder / "0.0")
        sender._connected_stream().send(record)
        with pytest.raises(ChannelError, match=r"the previous stage went away: a (record of kind|message of)"):
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
