"""A channel between two processes of one host: tensors through memory that both have mapped, the rest through a Unix socket.

The sender owns one piece of shared memory per slot and sends its descriptor over the socket; it replaces a piece that has become
too small, or far too large. A message is copied there once, from its tensors, and copied out once, as soon as it arrives. So what
`receive` returns belongs to the caller, and a slot is free before its message is received: message n uses slot n % slots, and its
credit says that message n - slots was copied out. Short messages, and Cancel and Stop, go through the socket itself.

Both ends connect in the background at a path in a private folder: the receiver listens there, the sender connects. The file is
removed once they are connected. The end of the socket is the end of the channel, so the death of either process is seen at once.

    record = [int32 kind][int32 slot][int64 bytes]      INLINE: that many bytes follow on the socket
                                                        SLOT:   that many bytes are in the slot
                                                        MEMORY: the slot has that many bytes; its descriptor comes with the record
    credit = one byte for each message received
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from typing import NoReturn

import torch

from everface.core.errors import BadInput
from everface.runtime.messages import UNBUFFERED, Message
from everface.runtime.signal import Signal
from everface.runtime.transport import serialization
from everface.runtime.transport.base import SLOTS, ChannelError, CreditedSender, OnCancel, QueuedReceiver
from everface.runtime.transport.memory_file import map_memory, open_memory
from everface.runtime.transport.socket_stream import SocketStream

RECORD = struct.Struct("<iiq")
INLINE, SLOT, MEMORY = 1, 2, 3
INLINE_BYTES = 4096  # longest message that goes through the socket
LEAST_BYTES = 1 << 16  # of a slot; pages that were never written to cost nothing
MOST_SPARE = 8  # a slot this many times longer than its message frees its memory
CONNECT_S = 60.0  # for the other end to connect
POLL_S = 0.02  # between two attempts to connect


class SharedSender(CreditedSender):
    """Upstream end. It connects to `path`, where the receiver must listen within `connect_s` seconds."""

    def __init__(self, path: str, slots: int = SLOTS, timeout_s: float = 120.0, connect_s: float = CONNECT_S):
        super().__init__(slots, timeout_s, connected=False)
        self._path, self._connect_s = path, connect_s
        self._stream: SocketStream | None = None
        self._sending = threading.Lock()  # messages that need a credit, one by one
        self._memory: list[torch.Tensor | None] = [None] * slots
        self._count = 0
        self._start(self._receive_credits, f"everface credits {path}")

    def send(self, message: Message) -> None:
        packet = serialization.pack(message)
        if isinstance(message, UNBUFFERED):
            self._send_inline(packet)
            return
        with self._sending:
            stream = self._connected_stream()
            self._acquire_credit()
            slot, self._count = self._count % len(self._memory), self._count + 1
            if packet.size <= INLINE_BYTES:
                self._send_inline(packet)
                return
            try:
                serialization.write(packet, self._slot(stream, slot, packet.size)[: packet.size])
                stream.send(RECORD.pack(SLOT, slot, packet.size))
            except OSError as error:
                self._lose(error)

    def _send_inline(self, packet: serialization.Packet) -> None:
        data = serialization.write(packet, torch.empty(packet.size, dtype=torch.uint8))
        stream = self._connected_stream()
        try:
            stream.send(RECORD.pack(INLINE, 0, packet.size) + data.numpy().tobytes())
        except OSError as error:
            self._lose(error)

    def _slot(self, stream: SocketStream, slot: int, size: int) -> torch.Tensor:
        """The memory of a slot, at least `size` bytes of it. Raises OSError."""
        memory = self._memory[slot]
        if memory is None or not size <= memory.numel() <= max(LEAST_BYTES, MOST_SPARE * size):
            capacity = max(LEAST_BYTES, 1 << (size - 1).bit_length())
            descriptor = open_memory(os.path.dirname(self._path), capacity)
            try:
                memory = map_memory(descriptor, capacity)
                stream.send(RECORD.pack(MEMORY, slot, capacity), descriptor)
                self._memory[slot] = memory
            finally:
                os.close(descriptor)
        return memory

    def _connected_stream(self) -> SocketStream:
        """The connected socket. Waits for it; raises ChannelError if the receiver does not listen within connect_s."""
        self.wait_connected(2 * self._connect_s)  # `_connect` gives up after half of that
        with self._changed:
            if self._stream is None or self._broken is not None:
                raise ChannelError(self._broken or "the channel is closed")
            return self._stream

    def _lose(self, error: OSError) -> NoReturn:
        """Break the channel because of a failed send. Raises ChannelError."""
        reason = "it read nothing in time" if isinstance(error, BlockingIOError) else error.strerror or str(error)
        self.abort(f"the next stage cannot be reached: {reason}")
        raise ChannelError(self._broken) from None

    def _disconnect(self) -> None:
        stream = self._stream
        if stream:
            stream.cut()

    def _connect(self) -> socket.socket | None:
        """A connected socket; None if the channel was aborted meanwhile. Raises OSError."""
        end_s = time.monotonic() + self._connect_s
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                client.connect(self._path)
                return client
            except (FileNotFoundError, ConnectionRefusedError):
                client.close()
                if time.monotonic() > end_s:
                    raise TimeoutError(f"it did not listen for {self._connect_s:g} s") from None
            except BaseException:
                client.close()
                raise
            with self._changed:
                if self._changed.wait_for(lambda: self._broken is not None, POLL_S):
                    return None

    def _receive_credits(self) -> None:
        stream = None
        try:
            client = self._connect()
            if client is None:
                return
            stream = SocketStream(client, self._timeout_s)
            with self._changed:
                self._stream, self._connected = stream, True
                self._changed.notify_all()
                if self._broken is not None:
                    return
            while count := stream.receive_some(64):
                self._add_credits(count)
            self._fail("the next stage went away: its end of the channel was closed")
        except OSError as error:
            self._fail(f"the next stage went away: {error.strerror or error}")
        finally:
            if stream:
                stream.close()
            self._memory = [None] * len(self._memory)


class SharedReceiver(QueuedReceiver):
    """Downstream end. It listens at `path`, in a folder that no other user can write to, when this constructor returns.

    Raises BadInput if the path is too long for a socket, OSError if it cannot listen there.
    """

    def __init__(
        self,
        path: str,
        on_cancel: OnCancel | None,
        timeout_s: float = 120.0,
        connect_s: float = CONNECT_S,
        signal: Signal | None = None,
    ):
        super().__init__(on_cancel, connected=False, signal=signal)
        self._path, self._timeout_s, self._connect_s = path, timeout_s, connect_s
        self._stream: SocketStream | None = None
        self._memory: dict[int, torch.Tensor] = {}
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            listener.listen(1)
        except OSError as error:
            listener.close()
            if error.errno is None or error.errno == errno.ENAMETOOLONG:  # Python's own check, or the system's
                raise BadInput(
                    f"a channel cannot be opened at {path} ({error}): name a shorter temporary folder in TMPDIR"
                ) from None
            raise
        self._start(lambda: self._receive_messages(listener), f"everface messages {path}")

    def receive(self, timeout_s: float) -> Message | None:
        message = self._dequeue(timeout_s)
        if message is not None and not isinstance(message, UNBUFFERED):
            stream = self._stream
            assert stream is not None  # the message came through it
            try:
                stream.send(b"\1")
            except OSError as error:  # the message itself is complete; the next receive raises
                self._fail(f"the previous stage went away: {error.strerror or error}")
        return message

    def _disconnect(self) -> None:
        stream = self._stream
        if stream:
            stream.cut()

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        """The sender's socket; None if the channel was aborted meanwhile. Raises TimeoutError. Removes the path in any case."""
        end_s = time.monotonic() + self._connect_s
        try:
            with listener:
                listener.settimeout(POLL_S)  # another thread has no portable way to end an accept
                while self._broken is None:
                    with contextlib.suppress(TimeoutError):
                        return listener.accept()[0]
                    if time.monotonic() > end_s:
                        raise TimeoutError(f"it did not connect for {self._connect_s:g} s")
                return None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _receive_messages(self, listener: socket.socket) -> None:
        stream = None
        try:
            server = self._accept(listener)
            if server is None:
                return
            stream = SocketStream(server, self._timeout_s)
            with self._changed:
                self._stream, self._connected = stream, True
                self._changed.notify_all()
                if self._broken is not None:
                    return
            while True:
                record, descriptors = stream.receive(RECORD.size)
                kind, slot, size = RECORD.unpack(record)
                self._handle_record(stream, kind, slot, size, descriptors)
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            self._fail(f"the previous stage went away: {getattr(error, 'strerror', None) or error}")
        finally:
            if stream:
                stream.close()
            self._memory.clear()

    def _handle_record(self, stream: SocketStream, kind: int, slot: int, size: int, descriptors: list[int]) -> None:
        """Receive the message, or map the memory, that a record announces. Raises ValueError for a record that makes no sense."""
        try:
            if not 0 < size <= (INLINE_BYTES if kind == INLINE else serialization.MOST_BYTES):
                raise ValueError(f"a message of {size} bytes")
            if kind == MEMORY and len(descriptors) == 1:
                self._memory[slot] = map_memory(descriptors[0], size)
            elif kind == SLOT and slot in self._memory and size <= self._memory[slot].numel():
                self._enqueue(serialization.decode(self._memory[slot][:size].clone()))
            elif kind == INLINE:
                self._enqueue(serialization.decode(torch.frombuffer(stream.receive(size)[0], dtype=torch.uint8)))
            else:
                raise ValueError(f"a record of kind {kind} for slot {slot} that makes no sense")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
