"""`/v1/videos/sessions`: a whole session by plain HTTP, and what these routes refuse."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import httpx
import numpy as np
import pytest
from tests.serve.faces import parts
from tests.serve.hosting import Host, hosted
from tests.serve.test_videos import png, wav

from everface.serve.settings import Limits

SESSIONS = "/v1/videos/sessions"
GONE = f"{SESSIONS}/session_{'0' * 24}"
PCM = {"content-type": "application/octet-stream"}
WAV = {"content-type": "audio/wav"}


def create(host: Host, image: bytes | None = None, **fields: Any) -> httpx.Response:
    parts: dict[str, Any] = {name: (None, str(value)) for name, value in ({"idle": False, "paced": False} | fields).items()}
    return host.http.post(SESSIONS, files=parts | ({"image": image} if image else {}))


def opened(host: Host, **fields: Any) -> str:
    response = create(host, **fields)
    assert response.status_code == 200, response.text
    return f"{SESSIONS}/{response.json()['id']}"


@contextmanager
def reading(host: Host, path: str, query: str = "") -> Iterator[list[bytes]]:
    """The body of the session's chunks, which is complete behind this."""
    body: list[bytes] = []
    began = threading.Event()

    def read() -> None:
        with host.http.stream("GET", f"{path}/chunks{query}") as response:
            assert response.status_code == 200
            began.set()
            body.extend(response.iter_raw())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert began.wait(20)
    yield body
    thread.join(60)
    assert not thread.is_alive()


def end_of(host: Host, path: str) -> dict[str, Any]:
    host.wait(lambda: host.http.get(path).json()["status"] == "ended", 60)
    return host.http.get(path).json()


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def test_a_session_is_a_video_in_one_response(host: Host) -> None:
    path = opened(host, rate_hz=24_000)
    with reading(host, path) as body:
        assert host.http.post(f"{path}/chunks", content=wav(0.6, 24_000), headers=WAV).json()["waiting_s"] <= 0.6
        assert host.http.post(f"{path}/chunks?end_segment=true", content=wav(0.4, 24_000)[44:], headers=PCM).status_code == 200
        assert any(session["status"] == "open" for session in host.http.get(SESSIONS).json()["data"])
        assert host.http.delete(f"{path}?drain=true").json()["deleted"]
    with av.open(io.BytesIO(b"".join(body)), "r") as file:
        assert sum(1 for _ in file.decode(video=0)) == 25
    assert end_of(host, path)["error"] is None
    assert host.service.sessions == 0


def test_events_come_in_order_with_the_media(host: Host) -> None:
    path = opened(host, format="jpeg")
    with reading(host, path, "?events=true") as body:
        host.http.post(f"{path}/chunks?end_segment=true", content=wav(1.0), headers=WAV)
        host.http.delete(f"{path}?drain=true")
    seen = list(parts(iter(body)))
    assert isinstance(seen[0], dict) and seen[0]["type"] == "started"
    kinds = [part[0] if isinstance(part, bytes) else part["type"] for part in seen if not isinstance(part, dict) or part["type"] == "segment_end"]
    assert kinds == [1, 2] * 25 + ["segment_end"]
    assert b"".join(body).endswith(b"--everface--\r\n")


def test_jpegs_without_events_are_what_a_browser_shows(host: Host) -> None:
    path = opened(host, format="jpeg")
    with reading(host, path) as body:
        host.http.post(f"{path}/chunks?end_segment=true", content=wav(0.4), headers=WAV)
        host.http.delete(f"{path}?drain=true")
    assert b"".join(body).count(b"Content-Type: image/jpeg\r\n") == 10


def test_an_interruption_says_where_the_new_turn_begins(host: Host) -> None:
    path = opened(host)
    with reading(host, path):
        host.http.post(f"{path}/chunks", content=wav(5.0), headers=WAV)
        said = host.http.post(f"{path}/interrupt").json()
        assert said["turn"] == 1 and said["position"] > 0 and said["media_s"] >= 0
        host.http.delete(path)
    assert "has ended" in error_of(host.http.post(f"{path}/interrupt"), 409)


def test_a_reader_that_goes_ends_the_session_and_there_is_one(host: Host) -> None:
    path = opened(host, idle=True, paced=True)
    with host.http.stream("GET", f"{path}/chunks") as response:
        assert next(response.iter_raw())
        assert "being read" in error_of(host.http.get(f"{path}/chunks"), 409)
    end_of(host, path)
    host.wait(lambda: host.service.sessions == 0)


def test_audio_that_cannot_be_used_is_refused_and_the_session_goes_on(host: Host) -> None:
    path = opened(host)
    with reading(host, path) as body:
        for content, headers, sentence in (
            (b"odd", PCM, "whole number"), (wav(0.1, 8_000), WAV, "8000 Hz"), (wav(0.1, channels=2), WAV, "2 channel"), (b"no wav", WAV, "no wav file"), (wav(121.0), WAV, "more than 120 s"),
        ):  # fmt: skip
            assert sentence in error_of(host.http.post(f"{path}/chunks", content=content, headers=headers), 400)
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            assert "application/octet-stream" in error_of(host.http.post(f"{path}/chunks", content=b"", headers={"content-type": kind}), 415)
        host.http.post(f"{path}/chunks?end_segment=true", content=np.zeros(16_000, "<i2").tobytes(), headers=PCM)
        host.http.delete(f"{path}?drain=true")
    with av.open(io.BytesIO(b"".join(body)), "r") as file:
        assert sum(1 for _ in file.decode(video=0)) == 25
    for method, more in (("GET", "/chunks"), ("POST", "/chunks"), ("POST", "/interrupt")):
        assert "open another" in error_of(host.http.request(method, path + more, headers=PCM if more == "/chunks" else {}), 409)
    assert host.http.delete(path).status_code == 200


@pytest.mark.parametrize(
    ("image", "fields", "status", "sentence"),
    [(b"no image", {}, 400, "not a JPEG"), (None, {"rate_hz": 4000}, 422, "rate_hz"), (None, {"format": "avi"}, 422, "format"), (None, {"idle": "maybe"}, 422, "idle"),
     (None, {"channels": 3}, 422, "channels"), (None, {"seed": -1}, 422, "seed"), (None, {"prompt": "x" * 3000}, 422, "prompt")],
)  # fmt: skip
def test_what_cannot_be_opened_is_refused(small_host: Host, image: bytes | None, fields: dict[str, Any], status: int, sentence: str) -> None:
    message = error_of(create(small_host, image, **fields), status)
    assert sentence in message and "/tmp" not in message
    small_host.wait(lambda: small_host.service.sessions == 0)


@pytest.mark.parametrize("kind", ["application/json", ""])
def test_another_content_type_is_refused(host: Host, kind: str) -> None:
    assert "multipart/form-data" in error_of(host.http.post(SESSIONS, content=b"{}", headers={"content-type": kind}), 415)


@pytest.mark.parametrize(("method", "more"), [("GET", ""), ("DELETE", ""), ("GET", "/chunks"), ("POST", "/chunks"), ("POST", "/interrupt")])
def test_an_unknown_session_is_404_and_a_wrong_id_422(host: Host, method: str, more: str) -> None:
    headers = PCM if more == "/chunks" else {}
    error_of(host.http.request(method, GONE + more, headers=headers), 404)
    error_of(host.http.request(method, f"{SESSIONS}/1{more}", headers=headers), 422)


def test_a_server_that_ends_says_so_and_completes_the_response() -> None:
    with hosted(limits=Limits(drain_s=0.2, requests_per_s=1e6)) as host:
        path = opened(host, format="jpeg")
        with reading(host, path, "?events=true") as body:
            assert host.loop is not None
            host.loop.call_soon_threadsafe(host.server.end)
        said = [part for part in parts(iter(body)) if isinstance(part, dict)]
    assert [event["type"] for event in said if event["type"] != "stats"] == ["started", "closing", "error"]
    assert "server has ended" in said[-1]["message"]


def test_a_server_that_is_not_ready_opens_nothing() -> None:
    with hosted() as host:
        host.service.backend.state = "loading"  # type: ignore[misc]  the toy's can be set
        assert "try again" in error_of(create(host), 503)
        host.service.backend.state = "ready"  # type: ignore[misc]  the toy's can be set


def test_limits() -> None:
    with hosted(limits=Limits(sessions=1, upload_bytes=100_000, image_pixels=10_000, stall_s=0.5, outbox_bytes=4096, idle_s=2.0)) as host:
        assert "limit" in error_of(host.http.post(SESSIONS, files={"image": bytes(300_000)}), 413)
        assert "megapixels" in error_of(create(host, png(128)), 400)
        unread = opened(host, paced=True, idle=True)
        assert "1 live sessions are open" in error_of(create(host), 429)
        error_of(host.http.post(f"{unread}/chunks", content=bytes(300_000), headers=PCM), 413)
        assert "not read in time" in end_of(host, unread)["error"]
        silent = opened(host)
        assert "nothing came" in end_of(host, silent)["error"]
        host.wait(lambda: host.service.sessions == 0)
