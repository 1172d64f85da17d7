"""One client's connection: the handshake, then at most one session. A connection without one keeps an engine's address known to be good."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.core.log import log
from everface.engine import protocol
from everface.engine.frame_ring import FrameRing
from everface.engine.hosted_session import WINDOW_MS, HostedSession, check_names, status_of
from everface.live.session import LiveSession
from everface.runtime.transport.socket_stream import SocketStream

# (request, seconds of video in its outbox) -> the session, and (height, width) of its frames
Opener = Callable[[protocol.OpenRequest, float], tuple[LiveSession, tuple[int, int]]]

SEND_S = 30.0  # a client that reads nothing for so long is cut off
HELLO_S = 10.0  # for the first message
READ_AHEAD = 1 << 16  # a client sends no descriptor that is wanted
SLOTS = (2, 64)
DEFAULT_SLOTS = 8
MOST_BUS_ID = 32  # characters
NO_WAIT = struct.pack("ll", 0, 0)


def check_peer(connected: socket.socket) -> None:
    """Raise Unavailable unless the client runs as the engine's user, or as root."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    if user not in (os.getuid(), 0):
        raise Unavailable(f"this engine serves the user {os.getuid()} and not {user}: start an engine of your own")


class Connection:
    """`run` serves the client until it goes, or until `cut`."""

    def __init__(self, connected: socket.socket, opener: Opener, fps: int, version: str = "") -> None:
        self._socket, self._opener, self._fps, self._version = connected, opener, fps, version
        self._stream = SocketStream(connected, SEND_S, READ_AHEAD)
        self.session: HostedSession | None = None
        self.refusal: Unavailable | None = None  # of new sessions
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(HELLO_S), 0))

    def run(self) -> None:
        try:
            self._serve()
        except EverfaceError as error:
            self._refuse(status_of(error), str(error))
        except (EOFError, OSError):
            pass  # the client is gone
        except ValueError as error:  # of msgspec
            self._refuse(protocol.BAD_INPUT, f"a message cannot be read ({error}): use another version of the library")
        except Exception:
            log.exception("a connection of the engine failed")
            self._refuse(protocol.UNAVAILABLE, "the engine failed: see its log")
        finally:
            if self.session:
                self.session.close()
            self._stream.close()

    def cut(self) -> None:
        """End it, from any thread."""
        self._stream.cut()

    def _serve(self) -> None:
        check_peer(self._socket)
        hello = self._receive()
        if not isinstance(hello, protocol.ClientHello) or hello.magic != protocol.MAGIC:
            raise BadInput("the first message is no greeting of everface's: connect with libeverface")
        self._stream.send(protocol.encode(protocol.EngineHello(protocol.MAJOR, protocol.MINOR, self._version, os.getpid())))
        if hello.major != protocol.MAJOR:
            sentence = f"the library speaks protocol {hello.major} and this engine {protocol.MAJOR}: use the library of everface {self._version}"
            self._refuse(protocol.VERSION, sentence)
            return
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, NO_WAIT)
        request = self._receive()
        if not isinstance(request, protocol.OpenRequest):
            raise BadInput(f"{type(request).__name__} came before a session was opened: use another version of the library")
        self._open(request)
        assert self.session
        while True:
            self.session.handle(self._receive())

    def _receive(self) -> protocol.Request:
        header, descriptors = self._stream.receive(protocol.LENGTH.size)
        for descriptor in descriptors:
            os.close(descriptor)
        [size] = protocol.LENGTH.unpack(header)
        if not 0 < size <= protocol.MOST_BYTES:
            raise BadInput(f"a message of {size} bytes is beyond the {protocol.MOST_BYTES} of this protocol: use another version of the library")
        body, descriptors = self._stream.receive(size)
        for descriptor in descriptors:
            os.close(descriptor)
        return protocol.decode_request(body)

    def _open(self, request: protocol.OpenRequest) -> None:
        if self.refusal:
            raise self.refusal
        check_names(request)
        if len(request.gpu) > MOST_BUS_ID or not request.gpu.isascii() or "\0" in request.gpu:
            raise BadInput("the GPU's name is no PCI bus id: use another version of the library")
        if not 0 <= request.outbox_ms <= 60_000:
            raise BadInput(f"an outbox of {request.outbox_ms} ms cannot be used: choose up to 60000")
        frames = request.outbox_ms * self._fps // 1000
        slots = request.slots or min(DEFAULT_SLOTS, max(SLOTS[0], frames // 2))
        if not SLOTS[0] <= slots <= SLOTS[1]:
            raise BadInput(f"{slots} slots cannot be used: choose {SLOTS[0]} to {SLOTS[1]}, or 0 for the engine's choice")
        live, (height, width) = self._opener(request, max(0, frames - slots) / self._fps)
        try:
            ring = FrameRing(slots, height, width, request.gpu)
        except BaseException:
            live.close()
            raise
        self.session = HostedSession(self._stream, live, ring)  # which closes both
        form = live.format
        reply = protocol.OpenReply(width, height, slots, ring.slot_bytes, form.sample_rate, form.fps, WINDOW_MS, ring.handle, live.remark, form.user_audio)
        self._stream.send(protocol.encode(reply), ring.descriptor)
        self.session.start()

    def _refuse(self, status: int, sentence: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.send(protocol.encode(protocol.ErrorNotice(status, sentence)))
            self._stream.end_sending()
