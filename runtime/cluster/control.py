"""What supervisor and workers say to each other: msgpack frames over a Unix socket, a pair a worker. Never a tensor, never a pickle.

The socket is also the lifeline: when one side dies, the other reads its end.
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
    """To a new worker: make these roles on its device. `spec` is plain data for the factory, which finds the device in it too."""

    roles: list[str]
    device: str
    factory: str
    spec: dict[str, Any]
    threads: int


class Join(msgspec.Struct, tag=True):
    """Connect to the neighbours. Rank r takes from r-1 and gives to r+1; the caller is the last rank, hence before the first."""

    generation: int
    rank: int
    world: int
    folder: str
    device: str  # of this process
    kinds: list[str]  # carrier of each channel, by the rank that takes
    slots: list[int]
    timeout_s: float


class Leave(msgspec.Struct, tag=True):
    """Drop the connections and every session, keep the roles, and wait for the next Join."""


class Built(msgspec.Struct, tag=True):
    """The roles are there."""


class Joined(msgspec.Struct, tag=True):
    """Connected, and taking messages."""

    generation: int


class Entered(msgspec.Struct, tag=True):
    """Work on a message begins. kind: "block" or "session"."""

    kind: str
    session: int
    index: int


class Left(msgspec.Struct, tag=True):
    """Work on it has ended."""


class Beat(msgspec.Struct, tag=True):
    """The process lives: its threads are run."""


class Cut(msgspec.Struct, tag=True):
    """A connection to a neighbour broke: someone else is the culprit."""

    reason: str


Order = Build | Join | Leave
Event = Built | Joined | Entered | Left | Beat | Cut
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Order | Event).decode


class Channel:
    """One end of the socket. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self._sending = threading.Lock()
        self._rest = b""

    def send(self, message: Order | Event) -> bool:
        """False if the other side is gone: whoever watches its end will deal with that."""
        body = _encode(message)
        try:
            with self._sending:
                self.sock.sendall(LENGTH.pack(len(body)) + body)
            return True
        except OSError:
            return False

    def read(self) -> list[Order | Event] | None:
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
