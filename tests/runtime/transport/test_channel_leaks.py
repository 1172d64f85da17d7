"""Channels that end leave no thread, file or mapped memory, however they end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.transport.channel_ends import KINDS, block, close_both, frames, open_both
from tests.runtime.transport.peer_process import peer_processes

from everface.runtime.messages import Block
from everface.runtime.transport.base import ChannelError
from everface.runtime.transport.selection import open_receiver, open_sender

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts files and threads in /proc")


def held() -> tuple[int, int, int]:
    """Open files, threads and mapped memory files of this process."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps.count("everface channel")


def held_beyond(base: tuple[int, int, int]) -> list[int]:
    """What is held beyond `base` at last: the system may list a thread for a moment after it was joined, also one of an earlier test in `base`."""
    end_s = time.monotonic() + 60
    while any(beyond := [max(0, now - then) for now, then in zip(held(), base, strict=True)]) and time.monotonic() < end_s:
        time.sleep(0.01)
    return beyond


@pytest.mark.parametrize(("kind", "times"), [("shared", 200), pytest.param("gloo", 200, marks=pytest.mark.long)])
def test_two_hundred_channels_leave_nothing(kind: str, times: int, folder: Path) -> None:
    def use_channel(turn: int) -> None:
        sender, receiver = open_both(kind, folder / f"0.{turn}")
        if turn % 3:
            sender.send(frames(0, 100_000))
        if turn % 3 == 2:
            assert isinstance(receiver.receive(10.0), Block)
        first, second = (sender, receiver) if turn % 2 else (receiver, sender)
        first.abort()
        first.join()
        close_both(second)

    base = held()
    for turn in range(times):
        use_channel(turn)
    assert held_beyond(base) == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_opened_again_while_their_peers_are_killed(kind: str, folder: Path) -> None:
    """This process goes on; the peer of each channel is killed, or stopped and then killed, while it works."""
    with peer_processes() as start_peer:

        def use_channel(side: str, stopped: bool, path: str) -> None:
            peer = start_peer(kind, side, path)
            end: Any = open_receiver(kind, path, print) if side == "sender" else open_sender(kind, path, timeout_s=0.2)
            assert end.wait_connected(60.0)
            if side == "sender":
                assert isinstance(end.receive(60.0), Block)
            else:
                end.send(block(0))
            if stopped:
                os.kill(peer, signal.SIGSTOP)
                if side != "sender":
                    with pytest.raises(ChannelError, match=r"received nothing for 0.2 s|nothing passed in time"):
                        for index in range(1, 5):
                            end.send(block(index))
                    end.abort()
                    end.join()  # while the peer is still stopped
            os.kill(peer, signal.SIGKILL)
            if not stopped:
                begin = time.monotonic()
                with pytest.raises(ChannelError, match=r"went away|cannot be reached"):
                    while time.monotonic() < begin + 20:
                        end.receive(20.0) if side == "sender" else end.send(frames(1, 50_000))
                assert time.monotonic() - begin < 15
            end.abort()
            end.join()

        base = held()
        for turn in range(12):
            use_channel(("receiver", "sleeper", "sender")[turn % 3], bool(turn % 2), str(folder / f"{turn}.0"))
        assert held_beyond(base) == [0, 0, 0]
