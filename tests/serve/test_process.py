"""`everface serve` as a process: it says where it listens, ends in order, and an error is one line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.hosting import TOKEN, end_of, next_event
from tests.serve.test_videos import png, wav
from websockets.sync.client import connect

from everface import cli


@contextmanager
def serving(small_model: Path, *arguments: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port, loaded."""
    command = [sys.executable, "-m", "everface", "serve", "--port", "0", "--weights", str(small_model), "--threads", "1", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | env)
    try:
        assert process.stdout
        port = int(re.findall(r":(\d+)/", process.stdout.readline())[0])
        headers = {"Authorization": f"Bearer {env['EVERFACE_TOKEN']}"} if env else {}
        end_s = time.monotonic() + 60
        while httpx.get(f"http://127.0.0.1:{port}/readyz", headers=headers).status_code != 200:
            assert time.monotonic() < end_s
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


def started(port: int) -> Any:
    socket = connect(f"ws://127.0.0.1:{port}/v1/avatar/stream", max_size=None).__enter__()
    socket.send(json.dumps({"type": "start", "format": "jpeg"}))
    assert next_event(socket)["type"] == "started"
    return socket


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_lets_sessions_and_renders_end(small_model: Path, number: signal.Signals) -> None:
    with serving(small_model) as (process, port):
        socket = started(port)
        files = {"audio": wav(3.0), "image": png()}
        name = httpx.post(f"http://127.0.0.1:{port}/v1/videos", files=files).json()["id"]
        process.send_signal(number)
        assert next_event(socket, "closing")["seconds"] == 20
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
        assert httpx.post(f"http://127.0.0.1:{port}/v1/videos", files=files).status_code == 503
        while httpx.get(f"http://127.0.0.1:{port}/v1/videos/{name}").json()["status"] != "completed":
            time.sleep(0.05)
        assert process.poll() is None  # the session is not over
        socket.send(json.dumps({"type": "close"}))
        assert end_of(socket)[1] == 1000
        assert process.wait(60) == 0 and process.stderr
        assert [line for line in process.stderr if "quality level" not in line] == []  # which a busy machine goes down and up


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_clients_are_told(small_model: Path) -> None:
    with serving(small_model) as (process, port):
        socket = started(port)
        process.send_signal(signal.SIGTERM)
        next_event(socket, "closing")
        process.send_signal(signal.SIGTERM)
        assert end_of(socket)[1] == 1012
        assert process.wait(60) == 0


@pytest.mark.long
def test_a_signal_under_load_lets_every_session_speak_to_its_end(small_model: Path) -> None:
    with serving(small_model, "--max-sessions", "3") as (process, port):
        sockets = [started(port) for _ in range(3)]
        for socket in sockets:
            socket.send(bytes(2 * 16_000))
        process.send_signal(signal.SIGTERM)
        for socket in sockets:
            next_event(socket, "closing", timeout_s=60)
            socket.send(json.dumps({"type": "close", "drain": True}))
        for socket in sockets:
            end = next_event(socket, "segment_end", timeout_s=60)
            assert end["shown_s"] == end["pushed_s"] == 1.0
            assert end_of(socket, timeout_s=60)[1] == 1000
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_token_comes_from_the_environment(small_model: Path) -> None:
    with serving(small_model, "--host", "127.0.0.1", EVERFACE_TOKEN=TOKEN) as (_, port):
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 401


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--host", "0.0.0.0"], "pass --token"), (["--port", "70000"], "port 70000"), (["--token", "abc"], "16 or more"),
     (["--port", "0", "--weights", "/nowhere"], "/nowhere is not a folder")],
)  # fmt: skip
def test_an_error_is_one_line_and_exit_code_2(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
