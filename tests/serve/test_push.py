"""A session is pushed to an HLS folder and to an RTMP server, nowhere else, and ends when the other system does not take it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from tests.serve.hosting import Host, hosted
from tests.serve.test_http_sessions import SESSIONS, WAV, end_of, error_of
from tests.serve.test_videos import wav

from everface.core.errors import BadInput
from everface.serve.stream import push
from everface.serve.stream.push import check_target

LISTENER = """import av, sys
kinds = []
with av.open(sys.argv[1], "r", format="flv", options={"listen": "1", "timeout": "60"}) as file:
    try:
        kinds += (packet.stream.type for packet in file.demux() for _ in packet.decode())
    except OSError:  # so a listener's stream ends
        pass
print(kinds.count("video"), kinds.count("audio"))"""


def create(host: Host, target: str, **fields: Any) -> httpx.Response:
    return host.http.post(SESSIONS, data={"idle": "false", "push": target} | fields, files={"paced": (None, "false")})


def speak(host: Host, target: str, seconds: float) -> dict[str, Any]:
    """A pushed session that says it all and ends."""
    response = create(host, target)
    assert response.status_code == 200, response.text
    path = f"{SESSIONS}/{response.json()['id']}"
    assert "pushed" in error_of(host.http.get(f"{path}/chunks"), 409)
    assert host.http.post(f"{path}/chunks?end_segment=true", content=wav(seconds), headers=WAV).status_code == 200
    host.http.delete(f"{path}?drain=true")
    return end_of(host, path)


def test_an_hls_folder_plays(tmp_path: Path) -> None:
    with hosted(push_to=(str(tmp_path),)) as host:
        assert speak(host, str(tmp_path / "hls"), 4.0)["error"] is None
        playlist = tmp_path / "hls" / "live.m3u8"
        host.wait(lambda: playlist.exists() and "#EXT-X-ENDLIST" in playlist.read_text(), 60)
    assert len(list(playlist.parent.glob("*.ts"))) >= 3
    with av.open(str(playlist)) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 99
    with av.open(str(playlist)) as file:
        assert sum(frame.samples for frame in file.decode(audio=0)) >= 3.9 * 16_000


def test_an_rtmp_server_gets_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = f"rtmp://127.0.0.1:{port}/live/face"
    listener = subprocess.Popen([sys.executable, "-c", LISTENER, target], stdout=subprocess.PIPE, text=True)
    try:
        with hosted(push_to=("rtmp://127.0.0.1:" + str(port),)) as host:
            host.wait(lambda: listening(port), 60)
            assert speak(host, target, 2.0)["error"] is None
        frames, sound = map(int, listener.communicate(timeout=60)[0].split())
        assert frames >= 49 and sound >= 20
    finally:
        listener.kill()
        listener.wait()


def listening(port: int) -> bool:
    """Without a connection: the listener takes one only."""
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in Path("/proc/net/tcp").read_text().splitlines()[1:])


def test_an_address_where_nobody_listens_ends_the_session_with_a_sentence() -> None:
    with hosted(push_to=("rtmp://127.0.0.1:9/live",)) as host:
        path = f"{SESSIONS}/{speak(host, 'rtmp://127.0.0.1:9/live/x', 2.0)['id']}"
        host.wait(lambda: host.http.get(path).json()["error"], 60)
        assert "the push failed" in host.http.get(path).json()["error"]


def test_a_server_that_takes_nothing_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "STUCK_S", 1.0)
    monkeypatch.setattr(push, "LAST_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        target = f"rtmp://127.0.0.1:{silent.getsockname()[1]}/live"
        with hosted(push_to=(target,)) as host:
            path = f"{SESSIONS}/{speak(host, f'{target}/x', 2.0)['id']}"
            host.wait(lambda: host.http.get(path).json()["error"], 60)
            assert "nothing was taken" in host.http.get(path).json()["error"]


@pytest.mark.parametrize(
    "target",
    ["rtmp://evil.example/live", "rtmp://good.example.evil/live/x", "rtmp://good.example/livelier", "rtmp://good.example/live/x y=1", "/etc/hls", "{folder}/../x", "{folder}2", "http://good.example/live/x", "file:///etc/x", "x", ""],
)  # fmt: skip
def test_nothing_else_may_be_pushed_to(target: str, tmp_path: Path) -> None:
    allowed = ("rtmp://good.example/live", str(tmp_path))
    with pytest.raises(BadInput, match="may not push"):
        check_target(target.format(folder=tmp_path), allowed)
    assert check_target("rtmp://good.example/live/a-b?key=1", allowed) and check_target(f"{tmp_path}/a", allowed)
    with pytest.raises(BadInput, match="--push-to"):
        check_target("rtmp://good.example/live/x", ())


def test_a_server_pushes_nowhere_unless_it_is_told(host: Host) -> None:
    assert "--push-to" in error_of(create(host, "rtmp://127.0.0.1/live/x"), 400)
    assert "only fmp4" in error_of(create(host, "rtmp://127.0.0.1/live/x", format="jpeg"), 400)
