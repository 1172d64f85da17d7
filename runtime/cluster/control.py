"""Messages between the supervisor and its workers: msgpack frames over one socket per worker, on another host one of TCP.

No tensors, no pickle. When one side dies, the other reads the end of the stream.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import msgspec

MOST_BYTES = 1 << 20  # of one frame
LENGTH = struct.Struct("<I")


class Build(msgspec.Struct, tag=True):
    """Build these roles on this device. `model` is the import path of a registered model, `spec` plain data for its roles."""

    roles: list[str]
    device: str
    model: str
    spec: dict[str, Any]
    threads: int


class Connect(msgspec.Struct, tag=True):
    """Connect to the neighbors. Rank r receives from r-1 and sends to r+1; the caller has the last rank and sends to rank 0."""

    generation: int
    rank: int
    world: int  # ranks, with the caller
    folder: str
    device: str  # of this process
    kinds: list[str]  # transport of each channel, by the rank that receives
    slots: list[int]
    timeout_s: float
    store: str = ""  # HOST:PORT where ends of channels between hosts meet, "" if there is one host
    address: str = ""  # of this process's host, as the others reach it


class Disconnect(msgspec.Struct, tag=True):
    """Drop the connections and every session, keep the roles, wait for the next Connect."""


class Join(msgspec.Struct, tag=True):
    """First message of a worker on another host: it offers to run a stage."""

    token: str
    device: int  # of its host, from 0
    pid: int


class Built(msgspec.Struct, tag=True):
    """The roles are built."""


class Connected(msgspec.Struct, tag=True):
    """Connected, and receiving messages."""

    generation: int


class WorkStarted(msgspec.Struct, tag=True):
    """Work on a message begins. kind: "block", or a phrase for what else it is; then `session` and `index` mean nothing."""

    kind: str
    session: int
    index: int


class WorkFinished(msgspec.Struct, tag=True):
    """Work on that message has ended."""


class Heartbeat(msgspec.Struct, tag=True):
    """The process is alive."""


class Disconnected(msgspec.Struct, tag=True):
    """A connection to a neighbor broke. The fault is elsewhere."""

    reason: str


Command = Build | Connect | Disconnect
Report = Join | Built | Connected | WorkStarted | WorkFinished | Heartbeat | Disconnected
SILENT_MS = 3000  # a connection to another host ends when it has acknowledged nothing for so long
_encode: Callable[[Command | Report], bytes] = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Command | Report] = msgspec.msgpack.Decoder(Command | Report).decode


class ControlSocket:
    """One end of the socket. Any thread may send; one thread receives."""

    def __init__(self, connected: socket.socket):
        self._socket = connected
        self._sending = threading.Lock()
        self._rest = b""  # of a frame that has not come completely

    def send(self, message: Command | Report) -> bool:
        """Returns False if the other side is gone, which `receive` will report too."""
        body = _encode(message)
        try:
            with self._sending:
                self._socket.sendall(LENGTH.pack(len(body)) + body)
            return True
        except OSError:
            return False

    def receive(self) -> list[Command | Report] | None:
        """Wait for bytes and return the messages that are complete, perhaps none. None when the other side is gone, or sends what is no message."""
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        self._rest += data
        messages: list[Command | Report] = []
        while len(self._rest) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._rest)
            if length > MOST_BYTES:
                return None
            if len(self._rest) < LENGTH.size + length:
                break
            try:
                messages.append(_decode(self._rest[LENGTH.size : LENGTH.size + length]))
            except msgspec.MsgspecError:
                return None
            self._rest = self._rest[LENGTH.size + length :]
        return messages

    def cut(self) -> None:
        """End the connection for both sides; whoever receives sees its end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


def prepare_tcp(connected: socket.socket) -> socket.socket:
    """Have a connection to another host send at once, and end SILENT_MS after the other host or the network is gone."""
    connected.settimeout(None)
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS),
    ):
        connected.setsockopt(level, option, value)
    return connected
