"""Ctrl-C, SIGTERM or SIGHUP in the middle of a render: real signals to a real process; the file it leaves plays, and no other is lost."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.media import boxes

from everface.media.video import probe_video
from everface.train.synthetic.voices import write_wav

Start = Callable[..., subprocess.Popen[str]]
OLD = "a finished video"


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "long.wav"
    write_wav(path, 0.1 * torch.randn(16_000 * 300, generator=torch.Generator().manual_seed(0)))
    return path


@pytest.fixture
def start(small_model: Path, face: Path, audio: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a render of five minutes to x.mp4, and waits until it writes, or at least handles signals."""
    started: list[subprocess.Popen[str]] = []

    def start(*flags: str, writing: bool = True, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "everface", "render", str(face), str(audio), "-o", str(tmp_path / "x.mp4")]
        # A test run in the background inherits an ignored SIGINT, and so would its children; a terminal's programs do not.
        options = {"stderr": subprocess.PIPE, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options}
        process = subprocess.Popen(
            [*command, "--weights", str(small_model), *flags], text=True, start_new_session=True, **options
        )
        started.append(process)
        wait_for(process, lambda: written(tmp_path) if writing else handles_signals(process.pid))
        return process

    yield start
    for process in started:
        process.kill()


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ready():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


def written(folder: Path) -> bool:
    return any(path.stat().st_size > 60_000 for path in folder.glob(".*"))


def handles_signals(pid: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def check_video(path: Path) -> None:
    info = probe_video(path)
    assert info.frames >= 25 and info.fps == pytest.approx(25)
    assert info.audio_duration_s is not None and abs(info.audio_duration_s - info.duration_s) <= 0.04
    assert boxes.names(path) == ["ftyp", "moov", "mdat"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("number", "placement"), [(signal.SIGINT, "inline"), pytest.param(signal.SIGINT, "2", marks=pytest.mark.long), (signal.SIGTERM, "2"), (signal.SIGHUP, "inline")]
)
def test_it_leaves_a_playable_file_and_no_process(start: Start, tmp_path: Path, number: int, placement: str) -> None:
    process, out = start("--placement", placement), tmp_path / "x.mp4"
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)  # as a terminal or a service manager does: to the whole group
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and "interrupted" in said and str(out) in said and "Traceback" not in said
    check_video(out)
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert names(tmp_path) == ["x.mp4"]


@pytest.mark.parametrize(("placement", "pause_s"), [("inline", 0.0), ("inline", 0.1), pytest.param("2", 0.05, marks=pytest.mark.long)])
def test_three_signals_in_a_row_are_one(start: Start, tmp_path: Path, placement: str, pause_s: float) -> None:
    process = start("--placement", placement)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(pause_s)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said and "terminate" not in said
    check_video(tmp_path / "x.mp4")
    assert names(tmp_path) == ["x.mp4"]


@pytest.mark.parametrize("after_s", [0.0, 0.7, 1.5])
def test_three_ctrl_c_while_it_loads(start: Start, tmp_path: Path, after_s: float) -> None:
    process = start(writing=False)
    time.sleep(after_s)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.splitlines()[-1].startswith("everface: interrupted"), said
    assert set(names(tmp_path)) <= {"x.mp4"}


def test_force_keeps_the_older_video_until_the_new_one_is_complete(start: Start, tmp_path: Path) -> None:
    out, part = tmp_path / "x.mp4", tmp_path / "x.unfinished.mp4"
    out.write_text(OLD)
    process = start("--force")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and f"{out} is as it was" in said and str(part) in said
    assert out.read_text() == OLD and names(tmp_path) == ["x.mp4", "x.unfinished.mp4"]
    check_video(part)


def test_a_terminal_that_is_closed(start: Start, tmp_path: Path) -> None:
    """The render has it as its controlling terminal, with a progress bar on it that can no longer be drawn."""
    ours, theirs = pty.openpty()
    process = start(stderr=theirs, stdin=theirs, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(theirs)
    assert b"frames" in os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(60) == 129
    check_video(tmp_path / "x.mp4")
    assert names(tmp_path) == ["x.mp4"]


def test_nohup_goes_on_without_a_terminal(start: Start, tmp_path: Path) -> None:
    process = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and names(tmp_path) == ["x.mp4"]
