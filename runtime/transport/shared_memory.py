"""A channel between two processes of one host: tensors through memory that both have mapped, the rest through a Unix socket.

The sender owns one piece of shared memory per slot and hands its descriptor over the socket; it replaces a piece that has become
too small, or far too large. A message is written there once, straight from its tensors, and copied out once as soon as it
arrives, so what `take` answers belongs to the receiver and a slot is free before it is taken: message n uses slot n % slots, and
its credit says that message n - slots was copied out. Short messages, and Cancel and Stop, come through the socket itself.

Both ends wait_connected in the background at a path in a folder of their own: the receiver listens there, the sender connects. The file is
gone once they met. The end of the socket is the end of the channel, so the death of either process is seen at once.

    record = [int32 kind][int32 slot][int64 bytes]      INLINE: so many bytes follow on the socket
                                                        SLOT:   so many bytes stand in the slot
                                                        MEMORY: the slot is so many bytes long; its descriptor rides along
    credit = one byte for each message taken
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import struct
import tempfile
import threading
import time

import torch

from everface.core.errors import BadInput
from everface.runtime.messages import UNBUFFERED, Message
from everface.runtime.signal import Signal
from everface.runtime.transport import serialization
from everface.runtime.transport.base import SLOTS, ChannelError, CreditedSender, OnCancel, QueuedReceiver

RECORD = struct.Struct("<iiq")
INLINE, SLOT, MEMORY = 1, 2, 3
INLINE_BYTES = 4096  # up to here a message comes through the socket
LEAST_BYTES = 1 << 16  # of a slot; memory nobody wrote to costs nothing
MOST_SPARE = 8  # a slot this many times longer than its message gives its memory back
JOIN_S = 60.0
NAP_S = 0.02  # between two looks for the other end


class SocketStream:
    """One end's socket. Sends are whole and in turn; `cut` wakes whoever sends or receives; `close` comes from the receiving thread."""

    def __init__(self, connected: socket.socket, timeout_s: float):
        self._socket = connected
        self._sending, self._ending = threading.Lock(), threading.Lock()
        # A timeout of Python's own would make the socket non-blocking for the receiving thread too.
        late = struct.pack("ll", *divmod(max(1, int(timeout_s * 1e6)), 1_000_000))  # none at all would be for ever
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, late)

    def send(self, data: bytes, descriptor: int | None = None) -> None:
        """Raises OSError when the other end is gone or has read nothing for too long."""
        with self._sending:
            if descriptor is None:
                self._socket.sendall(data)
            elif socket.send_fds(self._socket, [data], [descriptor]) != len(data):
                raise OSError("half a record was sent")

    def receive(self, size: int) -> tuple[bytearray, list[int]]:
        """Exactly so many bytes and the descriptors that came along. Raises EOFError at the end, OSError."""
        data, descriptors = bytearray(), []
        while len(data) < size:
            part, found, _, _ = socket.recv_fds(self._socket, size - len(data), 1)
            descriptors += found
            if not part:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise EOFError("its end of the channel was closed")
            data += part
        return data, descriptors

    def receive_some(self, most: int) -> int:
        """Wait for bytes and answer how many came, 0 at the end."""
        return len(self._socket.recv(most))

    def cut(self) -> None:
        with self._ending, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()  # before the lock, which a sender may hold until then
        with self._sending, self._ending:
            self._socket.close()


class SharedSender(CreditedSender):
    """Upstream end. It connects to `path`, where the receiver must begin to listen within join_s."""

    def __init__(self, path: str, slots: int = SLOTS, timeout_s: float = 120.0, join_s: float = JOIN_S):
        super().__init__(slots, timeout_s, connected=False)
        self._path, self._join_s = path, join_s
        self._stream: SocketStream | None = None
        self._sending = threading.Lock()  # messages that need a credit, one by one
        self._memory: list[torch.Tensor | None] = [None] * slots
        self._count = 0
        self._start(self._receive_credits, f"credits of {path}")

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
        """The connected socket; waits for it, which ends after join_s at the latest. Raises ChannelError."""
        self.wait_connected(2 * self._join_s)
        with self._changed:
            if self._stream is None or self._broken is not None:
                raise ChannelError(self._broken or "the channel is closed")
            return self._stream

    def _lose(self, error: OSError) -> None:
        words = "it read nothing in time" if isinstance(error, BlockingIOError) else error.strerror or str(error)
        self.abort(f"the next stage cannot be reached: {words}")
        raise ChannelError(self._broken) from None

    def _disconnect(self) -> None:
        stream = self._stream
        if stream:
            stream.cut()

    def _connect(self) -> socket.socket | None:
        """The socket, connected; None if the channel was aborted before. Raises OSError."""
        end_s = time.monotonic() + self._join_s
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                client.connect(self._path)
                return client
            except (FileNotFoundError, ConnectionRefusedError):
                client.close()
                if time.monotonic() > end_s:
                    raise TimeoutError(f"nobody listened there for {self._join_s:g} s") from None
            except BaseException:
                client.close()
                raise
            with self._changed:
                if self._changed.wait_for(lambda: self._broken is not None, NAP_S):
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
    """Downstream end. It listens at `path`, in a folder that nobody else can write to, before this constructor returns.

    Raises BadInput when the path is too long for a socket, OSError when it cannot be listened at.
    """

    def __init__(
        self, path: str, on_cancel: OnCancel | None, timeout_s: float = 120.0, join_s: float = JOIN_S, signal: Signal | None = None
    ):
        super().__init__(on_cancel, connected=False, signal=signal)
        self._path, self._timeout_s, self._join_s = path, timeout_s, join_s
        self._stream: SocketStream | None = None
        self._memory: dict[int, torch.Tensor] = {}
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            listener.listen(1)
        except OSError as error:
            listener.close()
            if error.errno is None or error.errno == errno.ENAMETOOLONG:  # Python's own check, or the system's
                raise BadInput(f"a channel cannot be opened at {path} ({error}): name a shorter temporary folder in TMPDIR") from None
            raise
        self._start(lambda: self._receive_messages(listener), f"messages of {path}")

    def receive(self, timeout_s: float) -> Message | None:
        message = self._dequeue(timeout_s)
        if message is not None and not isinstance(message, UNBUFFERED):
            stream = self._stream
            assert stream is not None  # a message came through it
            try:
                stream.send(b"\1")
            except OSError as error:  # the message is good all the same; the next take will tell
                self._fail(f"the previous stage went away: {error.strerror or error}")
        return message

    def _disconnect(self) -> None:
        stream = self._stream
        if stream:
            stream.cut()

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        """The sender's socket; None if the channel was aborted before. Raises TimeoutError. The path is free again afterwards."""
        end_s = time.monotonic() + self._join_s
        try:
            with listener:
                listener.settimeout(NAP_S)  # nothing portable ends an accept
                while self._broken is None:
                    with contextlib.suppress(TimeoutError):
                        return listener.accept()[0]
                    if time.monotonic() > end_s:
                        raise TimeoutError(f"nobody connected for {self._join_s:g} s")
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
                self._follow(stream, kind, slot, size, descriptors)
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            self._fail(f"the previous stage went away: {getattr(error, 'strerror', None) or error}")
        finally:
            if stream:
                stream.close()
            self._memory.clear()

    def _follow(self, stream: SocketStream, kind: int, slot: int, size: int, descriptors: list[int]) -> None:
        """Do what a record says."""
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


def open_memory(folder: str, size: int) -> int:
    """A descriptor of `size` bytes of memory that has no name: a memory file, or where there are none a file already unlinked."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("everface channel")
    else:
        descriptor, path = tempfile.mkstemp(dir=folder or None)
        os.unlink(path)
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_memory(descriptor: int, size: int) -> torch.Tensor:
    """The first `size` bytes as uint8. They stay mapped while a tensor sees them. Raises ValueError if there are fewer."""
    return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
