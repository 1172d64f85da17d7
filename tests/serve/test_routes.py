"""Who may ask, what every response says, and the small routes: health, metrics, speech, the page's files."""

from __future__ import annotations

import socket
import wave
from io import BytesIO

import httpx
import pytest
from tests.serve.hosting import TOKEN, Host, hosted

from everface.core.errors import BadInput
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.serve import guard, protocol, speech
from everface.serve.rate import MOST_ADDRESSES, RequestRate
from everface.serve.server import listen
from everface.serve.settings import Limits, ServeSettings

ROUTES = [
    ("GET", "/"), ("GET", "/page/page.js"), ("GET", "/page/images/ada"), ("GET", "/v1/avatar"), ("POST", "/v1/speech"), ("GET", "/v1/videos"),
    ("POST", "/v1/videos"), ("GET", "/v1/videos/x"), ("GET", "/v1/videos/x/content"), ("DELETE", "/v1/videos/x"), ("GET", "/healthz"),
    ("POST", "/v1/videos/sessions"), ("GET", "/v1/videos/sessions"), ("GET", "/v1/videos/sessions/x"), ("DELETE", "/v1/videos/sessions/x"),
    ("GET", "/v1/videos/sessions/x/chunks"), ("POST", "/v1/videos/sessions/x/chunks"), ("POST", "/v1/videos/sessions/x/interrupt"),
    ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_answers_without_the_token(token_host: Host, method: str, path: str) -> None:
    wrong = [{}, {"Authorization": "Bearer " + "x" * len(TOKEN)}, {"Authorization": TOKEN}, {"Cookie": f"everface_token={TOKEN[:-1]}"}]
    for headers in wrong:
        response = httpx.request(method, f"http://127.0.0.1:{token_host.port}{path}", headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "no_token"
    assert token_host.http.request(method, path).status_code != 401


@pytest.mark.parametrize("path", ["/v1/videos", "/healthz", "/page/page.js"])
def test_a_token_in_the_address_opens_the_page_only(token_host: Host, path: str) -> None:
    base = f"http://127.0.0.1:{token_host.port}"
    assert httpx.get(f"{base}{path}?token={TOKEN}").status_code == 401
    with httpx.Client(base_url=base) as browser:
        response = browser.get(f"/?token={TOKEN}")
        assert response.status_code == 303 and response.headers["location"] == "/" and TOKEN not in response.headers["location"]
        cookie = response.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert browser.get(path).status_code == 200
    assert httpx.get(f"{base}/?token=wrong").status_code == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_page_of_another_site_and_another_host_name_are_refused(host: Host, method: str, path: str) -> None:
    for headers, code in (({"Origin": "http://evil.example"}, "wrong_origin"), ({"Host": "evil.example"}, "wrong_host")):
        response = host.http.request(method, path, headers=headers)
        assert response.status_code == 403 and response.json()["error"]["code"] == code
    own = {"Origin": f"http://127.0.0.1:{host.port}"}
    assert host.http.request(method, path, headers=own).status_code != 403


def test_every_response_is_guarded(host: Host) -> None:
    for path in ("/", "/page/style.css", "/v1/videos", "/nowhere", "/v1/videos/x"):
        headers = host.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/videos"), ("DELETE", "/v1/videos"), ("GET", "/v1/speech"), ("POST", "/healthz")])
def test_a_wrong_method_is_405(host: Host, method: str, path: str) -> None:
    response = host.http.request(method, path)
    assert response.status_code == 405 and response.headers["allow"] and response.json()["error"]["message"]


def test_ten_gigabytes_are_refused_by_their_header(host: Host) -> None:
    for path in ("/v1/videos", "/v1/speech", "/healthz", "/nowhere"):
        with socket.create_connection(("127.0.0.1", host.port)) as raw:
            kind = b"multipart/form-data; boundary=x" if path == "/v1/videos" else b"application/json"
            raw.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: 10737418240\r\n\r\n" % (path.encode(), kind))
            assert raw.recv(64).startswith(b"HTTP/1.1 413")


def test_an_address_that_asks_too_often_waits_and_others_do_not() -> None:
    with hosted(limits=Limits(requests_per_s=1.0)) as host:
        assert host.http.get("/healthz").status_code == 200
        while (refused := host.http.get("/healthz")).status_code == 200:
            pass
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1" and "this address" in refused.json()["error"]["message"]
        other = httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"))
        assert other.get(f"http://127.0.0.1:{host.port}/healthz").status_code == 200


def test_tokens_come_back_with_time_and_addresses_are_forgotten() -> None:
    now_s = [0.0]
    rate = RequestRate(10.0, lambda: now_s[0])
    assert [rate.take("a") for _ in range(21)] == [n / 20 for n in range(19, -1, -1)] + [-1.0]
    now_s[0] += 0.3
    assert [rate.take("a") >= 0 for _ in range(4)] == [True] * 3 + [False]
    for number in range(MOST_ADDRESSES):
        rate.take(str(number))
    assert len(rate._buckets) == MOST_ADDRESSES and rate.take("a") > 0


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h"])
def test_a_connection_that_does_not_ask_is_closed(host: Host, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ASK_S", 0.3)
    with socket.create_connection(("127.0.0.1", host.port), 20) as raw:
        raw.sendall(sent)
        answer = b""
        while data := raw.recv(4096):
            answer += data
        assert answer.startswith(b"HTTP/1.1 200") == (b"\r\n\r\n" in sent)


def test_a_body_that_does_not_come_is_408(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PIECE_S", 0.3)
    with socket.create_connection(("127.0.0.1", host.port), 20) as raw:
        raw.sendall(b"POST /v1/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        answer = b""
        while data := raw.recv(4096):
            answer += data
        assert answer.startswith(b"HTTP/1.1 408") and answer.count(b"HTTP/1.1") == 1


def test_health_readiness_and_metrics(host: Host) -> None:
    assert host.http.get("/healthz").json() == {"status": "ok"}
    assert host.http.get("/readyz").json()["status"] == "ready"
    response = host.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    names = (
        "block_seconds_count", "blocks_in_flight", "underruns_total", "first_frame_seconds_count", "renders_waiting", "sessions", "ready",
    )  # fmt: skip
    assert all(f"\neverface_{name} " in response.text for name in names)
    assert 'everface_requests_total{code="200"}' in response.text
    host.service.backend.state = "loading"  # type: ignore[misc]  the toy's can be set
    assert host.http.get("/readyz").status_code == 503
    host.service.backend.state = "ready"  # type: ignore[misc]  the toy's can be set


def test_the_page_is_there_and_nothing_else(host: Host) -> None:
    assert "everface" in host.http.get("/").text
    for name, kind in (("page.js", "text/javascript"), ("style.css", "text/css"), ("worklet.js", "text/javascript")):
        assert host.http.get(f"/page/{name}").headers["content-type"].startswith(kind)
    assert host.http.get("/page/images/mia").headers["content-type"] == "image/png"
    for path in ("/page/..%2Fapp.py", "/page/app.py", "/page/images/..%2Fplan.json", "/docs", "/page/index.html"):
        assert host.http.get(path).status_code == 404
    assert host.http.get("/v1/avatar").json()["images"] == sorted(path.stem for path in DEFAULT_WEIGHTS.glob("*.png"))


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"text": ""}', "application/json", 422),
        (b'{"text": "hi", "voice": "../x"}', "application/json", 422),
        (b'{"text": "hi", "more": 1}', "application/json", 422),
        (b'{"text": 5}', "application/json", 422),
        (b"{", "application/json", 422),
        (b'{"text": "' + b"x" * 2000 + b'"}', "application/json", 422),
        (b'{"text": "' + b"x" * 70_000 + b'"}', "application/json", 413),
        (b'{"text": "hi"}', "text/plain", 415),
        (b'{"text": "hi"}', "", 415),
    ],
)
def test_speech_refuses(host: Host, body: bytes, kind: str, status: int) -> None:
    response = host.http.post("/v1/speech", content=body, headers={"content-type": kind})
    assert response.status_code == status and response.json()["error"]["message"]


def test_speech_without_espeak_is_501(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "PROGRAM", "no-such-program")
    response = host.http.post("/v1/speech", json={"text": "hi"})
    assert response.status_code == 501 and "espeak-ng" in response.json()["error"]["message"]
    assert host.http.get("/v1/avatar").json()["speech"] is False


@pytest.mark.skipif(not speech.available(), reason="needs espeak-ng")
def test_speech_is_a_wav_file_and_text_is_never_an_option(host: Host) -> None:
    response = host.http.post("/v1/speech", json={"text": "--version; <speak> hello"})
    assert response.status_code == 200 and response.headers["content-type"] == "audio/wav"
    data = bytearray(response.content)
    with wave.open(BytesIO(data)) as file:
        assert file.getframerate() == 22_050 and file.getnchannels() == 1
    assert len(data) > 20_000
    assert host.http.post("/v1/speech", json={"text": "hi", "voice": "xx"}).status_code == 400


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"host": "0.0.0.0"}, "pass --token"),
        ({"host": "example.org"}, "pass --token"),
        ({"token": "short"}, "16 or more"),
        ({"token": "x" * 20 + " "}, "16 or more"),
        ({"port": 70_000}, "port 70000"),
    ],
)
def test_settings_that_are_unsafe_or_impossible_are_refused(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        ServeSettings(**settings)  # type: ignore[arg-type]  values that a user may pass
    assert ServeSettings(host="0.0.0.0", token=TOKEN, limits=Limits()) and ServeSettings(host="::1")


def test_a_port_that_is_taken_is_a_sentence() -> None:
    with hosted() as host, pytest.raises(BadInput, match="choose another"):
        listen("127.0.0.1", host.port)
