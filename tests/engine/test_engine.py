"""The engine as its clients see it at the protocol: frames, bounds, refusals, and what is left when a client dies."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.client.kills import descriptors
from tests.engine.processes import ROOT, WITHOUT_CLIENTS, BareClient, accepts, engine_process, held

from everface.engine import protocol
from everface.engine.frame_ring import FrameRing
from everface.engine.hosted_session import HostedSession
from everface.engine.server import Engine, listen
from everface.runtime.transport.socket_stream import SocketStream


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine") / "e.sock"


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with engine_process(path) as process:
        yield process


@pytest.fixture
def client(engine: subprocess.Popen[bytes], path: Path) -> Iterator[BareClient]:
    client = BareClient(path)
    yield client
    client.close()


def push(client: BareClient, seconds: float, turn: int = 0) -> bytes:
    data = (8000 * np.sin(np.arange(int(16_000 * seconds)) * 0.05)).astype(np.int16).tobytes()
    for start in range(0, len(data), 100_000):
        client.send(protocol.AudioPush(turn, 16_000, 1, protocol.INT16, data[start : start + 100_000]))
    return data


def test_frames_come_through_shared_memory_and_the_audio_comes_back(client: BareClient) -> None:
    reply = client.open()
    [descriptor] = client.descriptors
    size = reply.slots * reply.slot_bytes
    frames = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    data, back, images = push(client, 1.0), b"", []
    client.send(protocol.EndSegmentRequest())
    while True:
        notice = client.receive()
        if isinstance(notice, protocol.FrameNotice):
            images.append(frames[notice.slot * reply.slot_bytes :][: reply.width * reply.height * 3])
            client.send(protocol.SlotRelease(notice.slot))
        elif isinstance(notice, protocol.AudioNotice):
            back += notice.data
        elif isinstance(notice, protocol.SegmentNotice):
            break
    assert back == data and len(images) == 25 and len(set(images)) >= 8
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, size)  # the client cannot write to it,
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)  # nor take it away from the engine


def test_a_client_that_releases_nothing_gets_as_many_frames_as_there_are_slots(client: BareClient) -> None:
    client.open(slots=3)
    push(client, 2.0)
    frames = 0
    while frames < 3:
        frames += isinstance(client.receive(), protocol.FrameNotice)
    client.socket.settimeout(1.0)
    with pytest.raises(TimeoutError):
        while True:
            assert not isinstance(client.receive(), protocol.FrameNotice)


def test_a_drained_session_shows_everything_and_closes(client: BareClient) -> None:
    client.open()
    push(client, 1.0)
    client.send(protocol.CloseRequest(5000))
    seen: list[protocol.Notice] = []
    while (notice := client.receive()) is not None:
        seen.append(notice)
        if isinstance(notice, protocol.FrameNotice):
            client.release(notice.slot)
    assert sum(isinstance(n, protocol.FrameNotice) for n in seen) == 25 and isinstance(seen[-1], protocol.ClosedNotice)


BAD = {
    "no greeting": protocol.encode(protocol.SlotRelease(0)),
    "another program": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no length": bytes(4),
    "no msgpack": protocol.LENGTH.pack(3) + b"\xc1\xc1\xc1",
    "another major": protocol.encode(protocol.ClientHello(protocol.MAGIC, 9, 0)),
    "another magic": protocol.encode(protocol.ClientHello("other", 1, 0)),
}
BAD_LATER = {
    "slot not borrowed": protocol.SlotRelease(0), "no slot": protocol.SlotRelease(-1), "three channels": protocol.AudioPush(0, 16_000, 3, 0, b"aaaaaa"),
    "half a sample": protocol.AudioPush(0, 16_000, 1, 0, b"a"), "no rate": protocol.AudioPush(0, 0, 1, 0, b"aa"), "no format": protocol.AudioPush(0, 8_000, 1, 9, b"a"),
    "no rate that exists": protocol.AudioPush(0, 4_000, 1, 0, b"aa"), "too much": protocol.AudioPush(0, 8_000, 1, 0, bytes(200_000)),
    "an old turn": protocol.InterruptRequest(0), "a second greeting": protocol.ClientHello(protocol.MAGIC, 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_stranger_gets_a_sentence_and_the_end(client: BareClient, what: str) -> None:
    client.socket.sendall(BAD[what])
    notices = []
    while (notice := client.receive()) is not None:
        notices.append(notice)
    assert isinstance(notices[-1], protocol.ErrorNotice) and ": " in notices[-1].text


@pytest.mark.parametrize("what", BAD_LATER)
def test_a_bad_request_ends_its_session_alone(client: BareClient, path: Path, what: str) -> None:
    other = BareClient(path)
    other.open()
    client.open()
    client.send(BAD_LATER[what])
    notices = []
    while (notice := client.receive()) is not None:
        notices.append(notice)
    assert any(isinstance(n, protocol.ErrorNotice) and n.status == protocol.BAD_INPUT for n in notices)
    push(other, 0.5)
    while not isinstance(other.receive(), protocol.FrameNotice):
        pass
    other.close()


@pytest.mark.parametrize("options", [{"slots": 1}, {"slots": 65}, {"outbox_ms": -1}, {"outbox_ms": 100_000}])
def test_options_out_of_range_are_refused(client: BareClient, options: dict[str, int]) -> None:
    client.hello()
    client.send(protocol.OpenRequest("toy", 7, False, False, outbox_ms=options.get("outbox_ms", 2000), slots=options.get("slots", 0)))
    notice = client.receive()
    assert isinstance(notice, protocol.ErrorNotice) and "choose" in notice.text


def test_a_client_that_dies_frees_everything_it_held(engine: subprocess.Popen[bytes], path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.engine.processes import BareClient; from tests.engine.test_engine import push\n"
        "clients = [BareClient(Path(sys.argv[1])) for _ in range(3)]\n"
        "for c in clients: c.open(idle=True, paced=True); push(c, 3.0)\n"
        "print('open', flush=True)\n"
        "while True: clients[0].receive()\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"open\n"
        assert held(engine)[1] >= 3
        time.sleep(0.2)
        process.kill()
        process.wait()
        end_s = time.monotonic() + 60
        while held(engine) != WITHOUT_CLIENTS and time.monotonic() < end_s:
            time.sleep(0.05)
        assert held(engine) == WITHOUT_CLIENTS
        process.stdout.close()


def test_one_client_too_many_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(request: protocol.OpenRequest, outbox_s: float) -> Any:
        raise AssertionError

    monkeypatch.setattr("everface.engine.server.MOST_CONNECTIONS", 1)
    engine = Engine(nothing, 25)
    (first, its), (second, theirs) = socket.socketpair(), socket.socketpair()
    engine._begin(its)
    engine._begin(theirs)
    client = BareClient.__new__(BareClient)
    client.socket, client.descriptors = second, []
    notice = client.receive()
    assert isinstance(notice, protocol.ErrorNotice) and notice.status == protocol.UNAVAILABLE and "try again" in notice.text
    assert client.receive() is None
    for each in (first, second):
        each.close()
    engine.stop(0.0)


def test_a_second_engine_is_refused_and_a_dead_ones_socket_is_replaced(engine: subprocess.Popen[bytes], path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.engine.toy_engine", "--socket"]
    done = subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "already" in done.stderr
    stale = tmp_path / "s.sock"
    with engine_process(stale) as process:
        process.kill()
        process.wait()
    assert stale.exists()
    with engine_process(stale) as process:
        assert (stale.stat().st_mode & 0o777) == 0o600


def test_sigterm_shows_what_was_pushed_and_refuses_new_sessions(tmp_path: Path) -> None:
    path = tmp_path / "t.sock"
    with engine_process(path) as process:
        client, late = BareClient(path), BareClient(path)
        client.open()
        late.hello()
        push(client, 2.0)
        client.send(protocol.EndSegmentRequest())
        while not isinstance(notice := client.receive(), protocol.FrameNotice):
            pass
        frames = 1
        process.send_signal(signal.SIGTERM)
        while accepts(path):
            time.sleep(0.02)
        successor = listen(path)  # another engine may take the place at once
        time.sleep(0.5)  # from the closed door to the refusals
        late.send(protocol.OpenRequest("toy", 7, False, False))
        refusal = late.receive()
        assert isinstance(refusal, protocol.ErrorNotice) and "stopping" in refusal.text
        while notice is not None:
            if isinstance(notice, protocol.FrameNotice):
                client.release(notice.slot)
            notice = client.receive()
            frames += isinstance(notice, protocol.FrameNotice)
        assert frames == 50 and process.wait(60) == 0
        with successor:
            assert accepts(path)
        client.close()
        late.close()


def test_an_engine_of_an_owner_ends_with_it() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.engine.toy_engine", "--fd", str(theirs.fileno())]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
    theirs.close()
    mine, its = socket.socketpair()
    socket.send_fds(ours, [b"c"], [its.fileno()])
    its.close()
    client = BareClient.__new__(BareClient)
    client.socket, client.descriptors = mine, []
    mine.settimeout(60)
    client.open()
    push(client, 0.5)
    while not isinstance(client.receive(), protocol.FrameNotice):
        pass
    ours.close()
    assert process.wait(60) == 0
    client.close()


def test_a_session_whose_client_went_before_it_began_frees_its_memory_at_once() -> None:
    def frames() -> int:
        return descriptors().count("/memfd")

    before = frames()
    ours, theirs = socket.socketpair()
    live: Any = SimpleNamespace(close=lambda: None)
    gc.disable()
    try:
        session = HostedSession(SocketStream(ours, 1.0), live, FrameRing(3, 8, 8))
        assert frames() > before
        session.close()
        session.close()
        assert frames() == before
    finally:
        gc.enable()
        ours.close()
        theirs.close()
