"""What a live session refuses, and that it does not hurt another: wrong order, garbage, too much, too slow, too late, too many."""

from __future__ import annotations

import io
import json
import socket as sockets
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.serve.hosting import TOKEN, Host, end_of, hosted, next_event
from websockets.exceptions import InvalidStatus

from everface.serve.protocol import MOST_SILENT
from everface.serve.settings import Limits

START = {"type": "start", "format": "jpeg", "idle": False, "paced": False}


def speak(socket: Any, seconds: float = 0.5) -> int:
    """Push so much audio and end the segment. Returns the frames that came."""
    socket.send(np.zeros(int(16_000 * seconds), np.int16).tobytes())
    socket.send(json.dumps({"type": "end_segment"}))
    frames = 0
    while True:
        message = socket.recv(20)
        if isinstance(message, bytes):
            frames += message[0] == 1
        elif json.loads(message)["type"] == "segment_end":
            return frames


def test_silent_connections_do_not_keep_others_out() -> None:
    with hosted() as host:
        silent = [sockets.create_connection(("127.0.0.1", host.port)) for _ in range(MOST_SILENT + 40)]
        try:
            silent[0].settimeout(20.0)
            assert silent[0].recv(1) == b""  # the longest silent one is closed at once, not after ten seconds
            assert host.http.get("/healthz").status_code == 200
            silent[-1].setblocking(False)
            with pytest.raises(BlockingIOError):
                silent[-1].recv(1)
        finally:
            for connection in silent:
                connection.close()


@pytest.mark.parametrize(
    ("first", "word", "sentence"),
    [
        (b"\0\0" * 100, "wrong_order", "before the start message"),
        ('{"type": "end_segment"}', "wrong_order", "end_segment came before"),
        ("garbage", "bad_message", "docs/serve.md"),
        ("[" * 9000, "bad_message", "docs/serve.md"),
        ("x" * 20_000, "bad_message", "at most 16384"),
        ('{"type": "sing"}', "bad_message", "sing"),
        (json.dumps(START | {"rate_hz": 4000}), "bad_message", "8000"),
        (json.dumps(START | {"rate_hz": "16000"}), "bad_message", "rate_hz"),
        (json.dumps(START | {"channels": 3}), "bad_message", "channels"),
        (json.dumps(START | {"format": "avi"}), "bad_message", "format"),
        (json.dumps(START | {"extra": 1}), "bad_message", "extra"),
        (json.dumps(START | {"seed": -1}), "bad_message", "seed"),
        (json.dumps(START | {"image": "../../etc/passwd"}), "bad_input", "choose ada"),
    ],
)
def test_a_wrong_first_message_ends_the_connection_with_a_sentence(host: Host, first: Any, word: str, sentence: str) -> None:
    socket = host.socket()
    socket.send(first)
    fatal, code, reason = end_of(socket)
    assert fatal is not None and fatal["code"] == word and sentence in fatal["message"] and code == 1008 and reason
    assert fatal["message"].count("\n") == 0 and "Traceback" not in fatal["message"]


def test_a_wrong_message_within_a_session_is_complained_of_and_the_session_goes_on(host: Host) -> None:
    socket = host.started()
    wrong = ["garbage", '{"type": "start"}', json.dumps(START), b"odd", '{"type": "change", "image": "nobody"}', '{"type": "change"}', ""]
    for message in wrong:
        socket.send(message)
        error = next_event(socket, "error")
        assert not error["fatal"] and len(error["message"]) > 20
    assert speak(socket) == 13
    socket.close()


def test_audio_that_is_not_finite_is_refused_and_the_rest_is_played(host: Host) -> None:
    socket = host.started(encoding="f32le")
    socket.send(np.full(100, np.nan, np.float32).tobytes())
    assert "not finite" in next_event(socket, "error")["message"]
    socket.send(np.zeros(8000, np.float32).tobytes())
    socket.send(json.dumps({"type": "end_segment"}))
    assert next_event(socket, "segment_end")["shown_s"] == 0.5
    socket.close()


def test_more_audio_than_may_wait_is_dropped_with_a_sentence() -> None:
    with hosted(limits=Limits(ahead_s=2.0)) as host:
        socket = host.started()
        socket.send(np.zeros(3 * 16_000, np.int16).tobytes())
        assert "more than 2 s" in next_event(socket, "error")["message"]
        assert speak(socket) == 13
        socket.close()


def test_a_message_that_is_too_large_ends_its_connection_only() -> None:
    with hosted(limits=Limits(upload_bytes=100_000)) as host:
        good, bad = host.started(), host.started()
        bad.send(b"\0" * 200_000)
        assert end_of(bad)[1] == 1009
        assert speak(good) == 13
        good.close()


def test_an_upload_that_is_no_image_or_too_large_is_refused() -> None:
    with hosted(limits=Limits(image_pixels=10_000)) as host:
        for data, sentence in ((_png(200), "megapixels"), (None, "no image came")):
            socket = host.socket()
            socket.send(json.dumps(START | {"image": "upload"}))
            socket.send(data if data is not None else "no image")
            fatal, code, _ = end_of(socket)
            assert fatal is not None and sentence in fatal["message"] and code == 1008


def _png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_nobody_starts_in_time() -> None:
    with hosted(limits=Limits(start_s=0.3)) as host:
        fatal, code, _ = end_of(host.socket())
        assert fatal is not None and fatal["code"] == "start_missing" and code == 1008


@pytest.mark.parametrize(("limits", "word"), [({"idle_s": 0.5}, "idle"), ({"lifetime_s": 0.5}, "lifetime")])
def test_a_session_ends_when_it_is_idle_or_old(limits: dict[str, float], word: str) -> None:
    with hosted(limits=Limits(**limits)) as host:  # pyright: ignore[reportArgumentType]  these are floats
        socket = host.started(idle=True, paced=True)
        fatal, code, _ = end_of(socket)
        assert fatal is not None and fatal["code"] == word and code == 1008
        host.wait(lambda: host.service.sessions == 0)


def test_too_many_sessions_are_refused_and_a_place_is_free_again_at_once() -> None:
    with hosted(limits=Limits(sessions=1)) as host:
        first = host.started()
        fatal, code, _ = end_of(host.socket())
        assert fatal is not None and "limit" in fatal["message"] and code == 1013
        first.close()
        host.wait(lambda: host.service.sessions == 0)
        second = host.started()
        assert speak(second) == 13
        second.close()


def test_a_reader_that_does_not_read_is_closed_and_the_others_go_on() -> None:
    with hosted(limits=Limits(outbox_bytes=4096, stall_s=1.0, ahead_s=600.0)) as host:
        slow, good = _raw_start(host), host.started()
        host.wait(lambda: host.service.sessions == 2)
        _raw_send(slow, 2, np.zeros(16_000 * 300, np.int16).tobytes())  # five minutes, played as fast as it can be
        host.wait(lambda: host.service.sessions == 1, 60)
        assert speak(good) == 13
        good.close()
        slow.close()


def test_a_half_open_connection_leaves_nothing_behind() -> None:
    with hosted() as host:
        for cut in (b"", b"GET /v1/avatar/stream HTTP/1.1\r\nHost: localhost\r\n"):
            raw = sockets.create_connection(("127.0.0.1", host.port))
            raw.sendall(cut)
            raw.close()
        gone = _raw_start(host)
        host.wait(lambda: host.service.sessions == 1)
        gone.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, without a close frame
        gone.close()
        host.wait(lambda: host.service.sessions == 0)
        garbage = _raw_start(host)
        garbage.sendall(b"\xff" * 1000)
        host.wait(lambda: host.service.sessions == 0)
        assert speak(host.started()) == 13


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": TOKEN}, 401), ({"Authorization": f"Basic {TOKEN}"}, 401),
     ({"Cookie": "everface_token=wrong"}, 401), ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}, 403)],
)  # fmt: skip
def test_without_the_token_there_is_no_websocket(token_host: Host, headers: dict[str, str], status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        token_host.socket(additional_headers=headers)
    assert refused.value.response.status_code == status and b"message" in refused.value.response.body


def test_the_token_may_come_as_header_subprotocol_or_cookie(token_host: Host) -> None:
    for options in ({}, {"additional_headers": {}, "subprotocols": ["everface.v1", f"everface.{TOKEN}"]},
                    {"additional_headers": {"Cookie": f"everface_token={TOKEN}"}}):  # fmt: skip
        socket = token_host.socket(**options)
        socket.send(json.dumps(START))
        assert next_event(socket)["type"] == "started"
        assert socket.subprotocol == ("everface.v1" if "subprotocols" in options else None)
        socket.close()
        token_host.wait(lambda: token_host.service.sessions == 0)


def test_a_draining_server_warns_refuses_and_waits_for_its_sessions() -> None:
    with hosted() as host:
        socket = host.started()
        assert host.loop is not None
        host.loop.call_soon_threadsafe(host.service.drain)
        assert next_event(socket, "closing")["seconds"] == Limits().drain_s
        assert host.http.get("/readyz").status_code == 503
        fatal, code, _ = end_of(host.socket())
        assert fatal is not None and "ending" in fatal["message"] and code == 1013
        assert speak(socket) == 13
        socket.send(json.dumps({"type": "close", "drain": True}))
        assert end_of(socket)[1] == 1000


def _raw_start(host: Host) -> sockets.socket:
    """A connection by hand, whose other end never reads what it does not want."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", host.port))
    raw.sendall(
        b"GET /v1/avatar/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert b"101" in raw.recv(64)
    _raw_send(raw, 1, json.dumps(START).encode())
    time.sleep(0.2)
    return raw


def _raw_send(raw: sockets.socket, kind: int, data: bytes) -> None:
    """One frame, masked with zeros."""
    length = bytes([0x80 | 127]) + len(data).to_bytes(8, "big") if len(data) > 65535 else bytes([0x80 | 126]) + len(data).to_bytes(2, "big")
    raw.sendall(bytes([0x80 | kind]) + length + bytes(4) + data)
