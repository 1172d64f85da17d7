"""Messages between the supervisor and its workers: msgpack frames over a Unix socket pair, one pair a worker. No tensors, no pickle.

The socket also shows life: when one side dies, the other reads its end.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import msgspec

MOST_BYTES = 1 << 20  # of one frame
LENGTH = struct.Struct("<I")


class Build(msgspec.Struct, tag=True):
    """To a new worker: build these roles on its device. `model` is the import path of the registered model, `spec` plain data for it."""

    roles: list[str]
    device: str
    model: str
    spec: dict[str, Any]
    threads: int


class Connect(msgspec.Struct, tag=True):
    """Connect to the neighbours. Rank r receives from r-1 and sends to r+1; the caller is the last rank, so it is before the first."""

    generation: int
    rank: int
    world: int
    folder: str
    device: str  # of this process
    kinds: list[str]  # kind of each channel, by the rank that receives
    slots: list[int]
    timeout_s: float


class Disconnect(msgspec.Struct, tag=True):
    """Drop the connections and every session, keep the roles, wait for the next Connect."""


class Built(msgspec.Struct, tag=True):
    """The roles are built."""


class Connected(msgspec.Struct, tag=True):
    """Connected, and receiving messages."""

    generation: int


class WorkStarted(msgspec.Struct, tag=True):
    """Work on a message begins. kind: "block" or "session"."""

    kind: str
    session: int
    index: int


class WorkFinished(msgspec.Struct, tag=True):
    """Work on that message has ended."""


class Heartbeat(msgspec.Struct, tag=True):
    """The process is alive."""


class Disconnected(msgspec.Struct, tag=True):
    """A connection to a neighbour broke: the fault is elsewhere."""

    reason: str


Command = Build | Connect | Disconnect
Report = Built | Connected | WorkStarted | WorkFinished | Heartbeat | Disconnected
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Command | Report).decode


class ControlSocket:
    """One end of the socket. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self._sending = threading.Lock()
        self._rest = b""

    def send(self, message: Command | Report) -> bool:
        """False if the other side is gone: whoever watches its end will deal with that."""
        body = _encode(message)
        try:
            with self._sending:
                self.sock.sendall(LENGTH.pack(len(body)) + body)
            return True
        except OSError:
            return False

    def read(self) -> list[Command | Report] | None:
        """The messages of what has come, which may be none; waits for the first bytes. None when the other side is gone."""
        try:
            data = self.sock.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        self._rest += data
        messages = []
        while len(self._rest) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._rest)
            if length > MOST_BYTES:
                return None
            if len(self._rest) < LENGTH.size + length:
                break
            messages.append(_decode(self._rest[LENGTH.size : LENGTH.size + length]))
            self._rest = self._rest[LENGTH.size + length :]
        return messages

    def close(self) -> None:
        self.sock.close()
