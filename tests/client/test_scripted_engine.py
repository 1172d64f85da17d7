"""Engines that say what a test tells them, and no more: what a session does then, and what its callers get."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.client.kills import TONE, read_for
from tests.live.faces import live_in_process

from everface.client.engine_client import EngineClient, EngineSession
from everface.client.library import load_library
from everface.core.errors import Unavailable
from everface.engine import protocol
from everface.engine.frame_ring import FrameRing
from everface.engine.protocol import OpenRequest
from everface.engine.server import Engine, listen
from everface.live.events import LiveEvent, VideoFrame
from everface.live.session import LiveSession
from everface.runtime.events import Recovering

pytest.importorskip("cffi")
HELLO = protocol.encode(protocol.EngineHello(protocol.MAJOR, protocol.MINOR, "scripted", 1))
AWAY_S = 30.0  # what it takes to give an engine up, which no test here waits for


class Scripted:
    """Opens one session, reads nothing of it after that, and takes no connection later, though its socket stays there."""

    def __init__(self, path: Path) -> None:
        self.path, self.listener, self.ring = path, listen(path), FrameRing(4, 8, 8)
        self.connection: socket.socket | None = None

    def open(self, engine: EngineClient) -> EngineSession:
        answering = threading.Thread(target=self._answer)
        answering.start()
        session = engine.open_live("toy", idle=False, paced=False)
        answering.join()
        return session

    def _answer(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            if connection.recv(1):  # else it was to see whether somebody listens
                break
            connection.close()
        reply = protocol.encode(protocol.OpenReply(8, 8, 4, self.ring.slot_bytes, 16_000, 25, 60_000, listens=True))
        socket.send_fds(connection, [HELLO + reply], [self.ring.descriptor])
        self.connection = connection

    def say(self, message: bytes) -> None:
        assert self.connection
        self.connection.sendall(message)

    def go(self) -> None:
        if self.connection:
            self.connection.close()
        self.connection = None

    def close(self) -> None:
        self.go()
        self.listener.close()
        self.ring.close()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Scripted]:
    script = Scripted(tmp_path / "e.sock")
    yield script
    script.close()


@pytest.fixture
def session(script: Scripted, prefix: Path) -> Iterator[EngineSession]:
    with EngineClient(script.path, prefix=prefix, timeout_s=AWAY_S) as engine, script.open(engine) as session:
        yield session


def readable(session: EngineSession, timeout_s: float) -> bool:
    return bool(select.select([session], [], [], timeout_s)[0])


def lose(script: Scripted, session: EngineSession) -> list[LiveEvent]:
    script.go()
    return read_for(session, 10, Recovering)


def test_what_is_short_is_said_to_an_engine_that_reads_nothing_and_audio_is_refused(session: EngineSession, prefix: Path) -> None:
    ffi, lib = load_library(prefix)
    assert session.push_audio(TONE) == len(TONE)
    with pytest.raises(Unavailable, match="reads nothing"):
        for _ in range(64):
            session.push_user_audio(np.zeros(1 << 18, np.float32))
    accepted, samples = ffi.new("size_t *"), ffi.new("int16_t[]", 100)
    assert lib.ef_session_push_audio(session._handle, samples, 100, lib.EF_INT16, 16_000, 1, 0, accepted) == lib.EF_UNAVAILABLE
    assert accepted[0] == 0
    session.end_segment()
    assert session.interrupt() == 1


def test_counts_are_not_there_while_the_engine_is_away(script: Scripted, session: EngineSession) -> None:
    lose(script, session)
    with pytest.raises(Unavailable, match="coming back: ask again"):
        session.stats()  # lost, or greeting an engine that does not answer


def test_a_session_whose_engine_is_away_has_nothing_to_drain(script: Scripted, session: EngineSession) -> None:
    lose(script, session)
    session.close(drain_s=20.0)
    assert session.read(0.0) is None and session._closed


def test_a_drain_ends_in_time_for_who_waits_at_the_descriptor_alone(session: EngineSession) -> None:
    session.push_audio(TONE)
    session.close(drain_s=0.1)
    assert not session._closed
    for _ in range(100):
        assert readable(session, 20.0)
        session.read(0.0)
        if session._closed:
            return
    pytest.fail("it is readable, and does not close")


def test_nothing_is_left_to_read_after_an_interruption(script: Scripted, session: EngineSession) -> None:
    script.say(b"".join(protocol.encode(protocol.FrameNotice(0, at, 640 * at, 0.04 * at, False, False)) for at in range(2)))
    assert isinstance(session.read(10.0), VideoFrame) and readable(session, 10.0)
    session.interrupt()
    assert not readable(session, 0.0)


def test_the_error_comes_before_the_end_and_once(script: Scripted, session: EngineSession) -> None:
    body = b"\x92\x12\xa1x"  # a frame whose turn is a text
    script.say(protocol.LENGTH.pack(len(body)) + body)
    with pytest.raises(Unavailable, match="makes no sense"):
        session.read(10.0)
    assert session.read(0.0) is None and session._closed
    assert session.read(0.0) is None  # nothing follows


def test_many_may_open_at_once(prefix: Path, tmp_path: Path) -> None:
    """More than the engine has taken connections of."""
    path, waiting = tmp_path / "e.sock", []
    listener = listen(path)
    listener.listen(1)
    with pytest.raises(BlockingIOError):
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(str(path))
    with live_in_process(idle=False, paced=False) as live, EngineClient(path, prefix=prefix) as client:

        def opener(request: OpenRequest, outbox_s: float) -> tuple[LiveSession, tuple[int, int]]:
            return live, (8, 8)

        with pytest.raises(Unavailable, match="open again later"):
            client.open_live("toy", timeout_s=0.1)
        threading.Timer(0.1, client._lib.ef_engine_cancel, (client._engine,)).start()
        with pytest.raises(Unavailable, match="was cancelled"):
            client.open_live("toy")
        engine = Engine(opener, fps=25)
        later = threading.Timer(0.2, engine.serve, (listener,))
        later.daemon = True
        later.start()
        with client.open_live("toy", idle=False, paced=False) as session:
            session.push_audio(TONE)
            assert read_for(session, 20, VideoFrame)
        for each in waiting:
            each.close()
        engine.stop(0.0)


def test_an_engine_is_found_again_from_another_folder(prefix: Path, script: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with EngineClient("e.sock", prefix=prefix) as engine:
        monkeypatch.chdir("/")
        with script.open(engine) as session:
            assert session.read(0.0) is None
