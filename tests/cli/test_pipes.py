"""`everface render` in a pipeline: audio from stdin, video to stdout, as processes with real pipes; what comes out is decoded again."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.cli.processes import ROOT, run

from everface.media.video import probe_video, read_frames

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
NO_LENGTH = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data\0\0\0\0"


def samples(seconds: float) -> bytes:
    return (0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16_000)) * 32767).astype("<i2").tobytes()


@contextmanager
def render(words: str, face: Path, model: Path, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "everface", "render", str(face), *shlex.split(words), "--weights", str(model)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    with subprocess.Popen(argv, env=environment, **streams) as process:  # type: ignore[call-overload]  # streams are descriptors
        try:
            yield process
        finally:
            process.kill()


def frames_of(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path))).astype(np.float32)


def test_from_stdin_to_stdout(small_model: Path, face: Path, voice: Path, tmp_path: Path) -> None:
    """The same frames as from a file to a file; and the figures do not come between the bytes of the video."""
    plain, piped, both = tmp_path / "plain.mp4", tmp_path / "piped.mp4", tmp_path / "both.mp4"
    assert run(f"render {face} {voice} -o {plain} --weights {small_model}").returncode == 0
    done = run(f"render {face} - -o {piped} --weights {small_model} <{voice}")
    assert done.returncode == 0 and "piped.mp4 (64x64, 2.12 s)" in done.stdout, done
    assert np.array_equal(frames_of(plain), frames_of(piped))
    done = run(f"render {face} - -o - --weights {small_model} --placement 2 <{voice} >{both}")
    assert done.returncode == 0 and "stdout (64x64, 2.12 s)" in done.stderr, done
    info = probe_video(both)
    assert (info.frames, info.fps) == (53, 25) and info.audio_duration_s == pytest.approx(2.12, abs=0.04)
    assert np.abs(frames_of(plain) - frames_of(both)).mean() < 10  # noise, by another setting of the encoder
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.mp4", "piped.mp4", "plain.mp4"]


def test_frames_leave_while_audio_comes(small_model: Path, face: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.mp4"
    with render("- -o -", face, small_model) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(NO_LENGTH + samples(1.1))
        process.stdin.flush()
        got = b""
        while got.count(b"moof") < 12:  # of two blocks, while stdin stays open; frames of audio have none of their own
            got += os.read(process.stdout.fileno(), 65536)
        part.write_bytes(got)
        assert probe_video(part).frames >= 10
        process.stdin.write(samples(0.9))
        rest, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    whole = tmp_path / "whole.mp4"
    whole.write_bytes(got + rest)
    assert probe_video(whole).frames == 50


@pytest.mark.parametrize("audio", ["-", "{voice}"])
def test_a_reader_that_leaves_is_no_error(audio: str, small_model: Path, face: Path, voice: Path) -> None:
    source = "</dev/zero" if audio == "-" else ""
    words = f"render {face} {audio.format(voice=voice)} -o - --weights {small_model} {'--pcm 16000' if audio == '-' else ''}"
    done = run(f"{words} {source} | head -c 2000 >/dev/null; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@FULL
def test_a_full_disk_is_one_line(small_model: Path, face: Path, voice: Path) -> None:
    done = run(f"render {face} {voice} -o - --weights {small_model} >/dev/full")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert "cannot write stdout (No space left on device), free some space" in done.stderr


REFUSED = {
    "an empty stdin": ("- -o x.mp4", "</dev/null", "ended before any audio came"),
    "garbage to stdout": ("- -o -", "< <(yes)", "no audio that can be decoded"),
    "too little": ("- --pcm 16000 -o x.mp4", "< <(head -c 100 /dev/zero)", "3 ms, less than one video frame"),
    "a rate for a file": ("{voice} --pcm 16000 -o x.mp4", "", "--pcm describes raw samples from stdin"),
    "an impossible rate": ("- --pcm 10 -o x.mp4", "</dev/zero", "10 Hz cannot be used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used(case: str, small_model: Path, face: Path, voice: Path, tmp_path: Path) -> None:
    words, source, message = REFUSED[case]
    done = run(f"render {face} {words.format(voice=voice)} --weights {small_model} {source}", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr and done.stdout == "", done
    assert list(tmp_path.iterdir()) == []


def test_terminals_are_refused(small_model: Path, face: Path, voice: Path) -> None:
    theirs, ours = pty.openpty()
    try:
        with render(f"{voice} -o -", face, small_model, stdout=ours) as process:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 2 and b"would go to this terminal" in said
        with render("- -o -", face, small_model, stdin=ours) as process:
            out, said = process.communicate(timeout=60)
            assert process.returncode == 2 and b"stdin is this terminal" in said and out == b""
    finally:
        os.close(theirs)
        os.close(ours)


# SIGTERM and not SIGINT, which a shell has its background jobs ignore; both take the same way.
def test_a_signal_while_the_producer_is_silent(small_model: Path, face: Path, tmp_path: Path) -> None:
    with render("- -o -", face, small_model) as process:
        assert process.stdin and process.stdout
        process.stdin.write(NO_LENGTH + samples(1.1))
        process.stdin.flush()
        got = os.read(process.stdout.fileno(), 65536)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        process.wait(60)
        assert process.stderr and process.returncode == 143 and process.stderr.read().startswith(b"everface: interrupted")
        assert time.monotonic() - began_s < 40
        got += process.stdout.read()
    (tmp_path / "x.mp4").write_bytes(got)
    assert probe_video(tmp_path / "x.mp4").frames >= 12


def test_a_signal_while_the_reader_does_not_read(small_model: Path, face: Path) -> None:
    with render("- --pcm 16000 -o -", face, small_model) as process, open("/dev/urandom", "rb") as noise:
        assert process.stdin and process.stdout and process.stderr
        os.set_blocking(process.stdin.fileno(), False)
        end_s = time.monotonic() + 60
        idle = 0
        while idle < 20 and time.monotonic() < end_s:  # until it takes no more audio, because its video is stuck
            try:
                os.write(process.stdin.fileno(), noise.read(16_000))
                idle = 0
            except BlockingIOError:
                idle += 1
                time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        assert process.wait(60) == 143
        assert time.monotonic() - began_s < 40
        assert b"interrupted" in process.stderr.read()


@pytest.mark.skipif(subprocess.run(["which", "espeak-ng"], capture_output=True).returncode != 0, reason="espeak-ng is not installed")
def test_espeak(small_model: Path, face: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.mp4"
    command = f"espeak-ng --stdout 'Hello there' | {shlex.quote(sys.executable)} -m everface render {face} - -o - --weights {small_model} >{out}"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done
    assert probe_video(out).frames > 15
