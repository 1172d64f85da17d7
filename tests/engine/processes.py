"""Engines as processes, and a client of the bare protocol."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from everface.engine import protocol

ROOT = Path(__file__).parents[2]
WITHOUT_CLIENTS = (1, 0)
"""What `held` reads of an engine over the toy model that no client is connected to: the socket it listens at. Measured at a test's start it
may hold the connection of `wait_for_socket` too, which the engine closes a moment later."""


def accepts(path: Path) -> bool:
    """Whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def wait_for_socket(path: Path, process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not accepts(path):
        assert process.poll() is None, "the engine ended"
        assert time.monotonic() < end_s, "the engine does not listen"
        time.sleep(0.02)


@contextmanager
def engine_process(path: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """An engine that listens at `path`; by default over the toy model."""
    command = command or (sys.executable, "-m", "tests.engine.toy_engine", "--socket", str(path))
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "python")})
    try:
        wait_for_socket(path, process)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def links(process: subprocess.Popen[bytes]) -> list[str]:
    """What the descriptors of a process stand for."""
    found = []
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return found


def held(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Descriptors of sockets and of frames' memory that a process holds."""
    found = links(process)
    return sum(link.startswith("socket:") for link in found), sum("everface frames" in link for link in found)


class BareClient:
    """Speaks the protocol message by message. Descriptors that came are in `descriptors`."""

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.socket.connect(str(path))
        self.descriptors: list[int] = []

    def send(self, message: protocol.Request) -> None:
        self.socket.sendall(protocol.encode(message))

    def release(self, slot: int) -> None:
        """Gives a frame's slot back; an engine that ended after its last frame no longer wants it."""
        with suppress(BrokenPipeError):
            self.send(protocol.SlotRelease(slot))

    def receive(self) -> protocol.Notice | None:
        """The next message; None at the end of the stream."""
        header = self._exactly(protocol.LENGTH.size)
        return None if header is None else protocol.decode_notice(self._exactly(*protocol.LENGTH.unpack(header)) or b"")

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part, descriptors, _, _ = socket.recv_fds(self.socket, size - len(data), 2)
            except ConnectionResetError:  # the stream's end, where the engine left a message of ours unread
                return None
            self.descriptors += descriptors
            if not part:
                return None
            data += part
        return data

    def hello(self) -> protocol.Notice | None:
        self.send(protocol.ClientHello(protocol.MAGIC, protocol.MAJOR, protocol.MINOR))
        return self.receive()

    def open(self, *, idle: bool = False, paced: bool = False, outbox_ms: int = 2000, slots: int = 0) -> protocol.OpenReply:
        self.hello()
        self.send(protocol.OpenRequest("toy", 7, idle, paced, outbox_ms=outbox_ms, slots=slots))
        reply = self.receive()
        assert isinstance(reply, protocol.OpenReply), reply
        return reply

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
