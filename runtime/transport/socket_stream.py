"""One end of a Unix socket. Another thread can end its sends and receives."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading


class SocketStream:
    """Any thread may `send` and `cut`; one thread receives, and calls `close` when it is done.

    read_ahead: bytes that one system call may fetch. With any, descriptors come earlier than what they belong to: for ends that expect none.
    """

    def __init__(self, connected: socket.socket, timeout_s: float, read_ahead: int = 0):
        self._socket = connected
        self._sending, self._ending = threading.Lock(), threading.Lock()
        self._read_ahead, self._ahead = read_ahead, bytearray()  # received, but not asked for yet
        # Python's own timeout would make the socket non-blocking for the receiving thread too. A timeout of 0 would mean none.
        send_timeout = struct.pack("ll", *divmod(max(1, int(timeout_s * 1e6)), 1_000_000))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, send_timeout)

    def send(self, data: bytes, descriptor: int | None = None) -> None:
        """Send all of `data`, and a file descriptor with it. Raises OSError if the other end is gone or read nothing in time."""
        with self._sending:
            if descriptor is None:
                self._socket.sendall(data)
            elif socket.send_fds(self._socket, [data], [descriptor]) != len(data):
                raise OSError("half a record was sent")

    def receive(self, size: int) -> tuple[bytearray, list[int]]:
        """Exactly `size` bytes, and the descriptors that came with them. Raises EOFError at the end of the stream, OSError."""
        descriptors = list[int]()
        while len(self._ahead) < size:
            part, found, _, _ = socket.recv_fds(self._socket, max(self._read_ahead, size - len(self._ahead)), 1)
            descriptors += found
            if not part:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise EOFError("its end of the channel was closed")
            self._ahead += part
        data = self._ahead[:size]
        del self._ahead[:size]
        return data, descriptors

    def receive_some(self, most: int) -> int:
        """Wait for bytes and return how many came, 0 at the end of the stream."""
        return len(self._socket.recv(most))

    def cut(self) -> None:
        """End every send and receive, at both ends."""
        with self._ending, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end_sending(self) -> None:
        """The other end receives what was sent, and then the end of the stream."""
        with self._ending, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.cut()  # before taking the lock that a send may hold until then
        with self._sending, self._ending:
            self._socket.close()
