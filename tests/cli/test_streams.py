"""Closed, full and narrow standard streams: a render does not die of them, and a refusal keeps its exit code."""

from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.cli.processes import refused, run

from everface.cli.report import progress_bar
from everface.core.standard_streams import escape
from everface.media.video import probe_video, read_frames

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "simulate --paper"])
def test_output_that_is_lost_is_one_line_and_exit_2(words: str, unbuffered: str) -> None:
    refused(run(words, ">/dev/full", PYTHONUNBUFFERED=unbuffered), "output cannot be written (No space left on device)")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_wants_is_no_error(unbuffered: str) -> None:
    for redirect in (">&-", "| true; exit ${PIPESTATUS[0]}"):
        done = run("simulate --paper", redirect, PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run("render --help", "| head -1; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 1


@FULL
@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_refusal_keeps_its_exit_code(redirect: str) -> None:
    for words, unbuffered in (("render none.png none.wav -o x.mp4", ""), ("render none.png -o", "1")):
        done = run(words, redirect, PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.fixture(scope="module")
def frames(small_model: Path, face: Path, voice: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    out = tmp_path_factory.mktemp("plain") / "x.mp4"
    assert run(f"render {face} {voice} -o {out} --weights {small_model}").returncode == 0
    return np.stack(list(read_frames(out)))


@FULL
@pytest.mark.long
@pytest.mark.parametrize(
    ("redirect", "flags"),
    [(">/dev/full", ""), (">/dev/full 2>/dev/full", ""), ("<&- >&- 2>&-", "--placement 2")],
)
def test_a_render_is_whole_whatever_the_streams(
    redirect: str, flags: str, frames: np.ndarray, small_model: Path, face: Path, voice: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.mp4"
    redirect += "; exit ${PIPESTATUS[0]}"
    done = run(f"render {face} {voice} -o {out} --weights {small_model} {flags}", redirect, EVERFACE_LOG="debug")
    assert done.returncode == 0, done
    assert probe_video(out).frames == 53 and np.array_equal(np.stack(list(read_frames(out))), frames)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]
    if redirect.startswith(">/dev/full;"):
        assert f"the figures cannot be printed (No space left on device), but the video is complete in {out}" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_names_in_any_script_under_any_encoding(
    settings: dict[str, str], small_model: Path, face: Path, voice: Path, tmp_path: Path
) -> None:
    os.symlink(face, tmp_path / "лицо 顔.png")
    os.symlink(voice, os.fsencode(tmp_path) + b"/\xff\xfe.wav")  # no encoding has this name
    words = f"render 'лицо 顔.png' $'\\xff\\xfe.wav' -o 'фильм.mp4' --weights {small_model}"
    done = run(words, cwd=tmp_path, **settings)
    assert done.returncode == 0 and done.stderr == "", done
    if "LC_ALL" not in settings:  # there even the arguments are not decoded
        assert r"\u0444\u0438\u043b\u044c\u043c.mp4 (64x64" in done.stdout, done.stdout
    assert probe_video(tmp_path / "фильм.mp4").frames == 53
    refused(run(words, cwd=tmp_path, **settings), "--force")  # it is there already
    refused(run("render 'нет.png' $'\\xff.wav' -o y.mp4", cwd=tmp_path, **settings), "no audio file")


def test_a_name_moves_no_cursor(voice: Path, tmp_path: Path) -> None:
    name = "a\nb\x1b[2J\x07\u202e.png"
    done = run(f"render {shlex.quote(name)} {voice} -o x.mp4", cwd=tmp_path)
    refused(done, r"a b\x1b[2J\x07\u202e.png")
    assert escape("a\nb\x1b\udcff") == r"a\nb\x1b\udcff" and escape("фильм 顔.mp4") == "фильм 顔.mp4"


def test_a_terminal_that_goes_away_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real terminal: once its other end is closed, writing fails."""
    theirs, ours = os.openpty()
    with open(ours, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar() as progress:
            assert progress
            progress(1, 10, 25.0)
            os.close(theirs)
            with pytest.raises(OSError):
                os.write(ours, b"x")
            progress(10, 10, 25.0)


def test_without_a_terminal_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar() as progress:
        assert progress is None
