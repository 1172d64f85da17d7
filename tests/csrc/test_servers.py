"""The examples that are servers and pipelines, built from an installed prefix and run against an engine over the toy model."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.csrc.conftest import ROOT, run
from tests.engine.processes import WITHOUT_CLIENTS, engine_process, held, wait_for_socket

FRAME_BYTES = 8 * 8 * 3
RATE_HZ = 16_000
DEADLINE_S = 60.0


def tone(seconds: float) -> np.ndarray:
    return (8000 * np.sin(np.arange(int(RATE_HZ * seconds)) * 0.05)).astype(np.int16)


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(DEADLINE_S)
    client.connect(str(path))
    return client


def talk(path: Path, seconds: float, wait_s: float = 0.0) -> bytes:
    """All frames of a clip, read only after `wait_s`."""
    with connect(path) as client:
        client.sendall(tone(seconds).tobytes())
        client.shutdown(socket.SHUT_WR)
        time.sleep(wait_s)
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@contextmanager
def epoll_server(prefix: Path, folder: Path, engine: Path) -> Iterator[Path]:
    program, path = folder / "epoll_server", folder / "server.sock"
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{prefix}/include", "-L", prefix / "lib", "-leverface", f"-Wl,-rpath,{prefix}/lib")
    run("c++", ROOT / "examples" / "epoll_server.cpp", "-o", program, *flags)
    process = subprocess.Popen([program, "toy", path, engine])
    try:
        wait_for_socket(path, process)
        yield path
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)


def test_one_thread_serves_many_clients(prefix: Path, tmp_path: Path) -> None:
    with engine_process(tmp_path / "e.sock") as engine:
        with epoll_server(prefix, tmp_path, tmp_path / "e.sock") as path:
            videos: dict[int, bytes] = {}
            clients = [threading.Thread(target=lambda at=at: videos.update({at: talk(path, 0.4 + 0.2 * at, 0.5 * (at == 0))})) for at in range(6)]
            for client in clients:
                client.start()
            with connect(path) as gone:
                gone.sendall(tone(5.0).tobytes())
                assert gone.recv(FRAME_BYTES)  # and it goes, in the middle
            for client in clients:
                client.join(DEADLINE_S)
            assert sorted(videos) == list(range(6))
            for at, video in videos.items():
                frames = [video[i : i + FRAME_BYTES] for i in range(0, len(video), FRAME_BYTES)]
                assert len(video) % FRAME_BYTES == 0 and len(frames) >= (0.4 + 0.2 * at) * 25 - 1 and len(set(frames)) >= 4
        end_s = time.monotonic() + DEADLINE_S
        while held(engine) != WITHOUT_CLIENTS and time.monotonic() < end_s:
            time.sleep(0.05)
        assert held(engine) == WITHOUT_CLIENTS


def test_a_gstreamer_pipeline_gets_the_frames_and_the_audio(prefix: Path, tmp_path: Path) -> None:
    packages = ("gstreamer-app-1.0", "gstreamer-video-1.0")
    if not shutil.which("pkg-config") or subprocess.run(["pkg-config", "--exists", *packages], check=False).returncode:
        pytest.skip("needs GStreamer's headers: libgstreamer-plugins-base1.0-dev")
    flags = (*run("pkg-config", "--cflags", "--libs", *packages).split(), f"-I{prefix}/include", "-L", prefix / "lib", "-leverface", f"-Wl,-rpath,{prefix}/lib")
    # An unbuffered sink: these frames are so small that its buffer would hold all of the session's.
    run("cc", ROOT / "examples" / "gstreamer.c", "-o", tmp_path / "gstreamer", *flags)
    audio = tone(2.0)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(audio.tobytes())
    ends = f"appsrc name=video ! filesink buffer-mode=2 location={tmp_path}/video appsrc name=audio ! filesink location={tmp_path}/audio"
    with engine_process(tmp_path / "e.sock"):
        run(tmp_path / "gstreamer", "toy", tmp_path / "speech.wav", ends, tmp_path / "e.sock")
    video = (tmp_path / "video").read_bytes()
    assert (tmp_path / "audio").read_bytes() == audio.tobytes()
    assert len(video) == 50 * FRAME_BYTES and len({video[i : i + FRAME_BYTES] for i in range(0, len(video), FRAME_BYTES)}) >= 16
