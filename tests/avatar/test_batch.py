"""A batch as a user runs it: one model, a failure in the middle, an interruption, and the same command again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli.processes import ROOT

from everface.avatar import batch as batch_module
from everface.avatar.avatar import Avatar
from everface.avatar.jobs import JOBS, read_jobs
from everface.cli import main
from everface.core.config import StreamConfig
from everface.media.video import probe_video, read_frames


@pytest.fixture
def jobs(face: Path, voice: Path, tmp_path: Path) -> Path:
    """Five jobs, of which the second and the fourth fail."""
    shutil.copy(face, tmp_path / "face.png")
    shutil.copy(voice, tmp_path / "voice.wav")
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    path = tmp_path / "jobs.csv"
    path.write_text(
        "image,audio,out,seed\nface.png,voice.wav,,\nface.png,missing.wav,,\nface.png,voice.wav,other.mp4,9\nface.png,bad.wav,,\nface.png,voice.wav,last.mp4,3\n"
    )
    return path


def entries(folder: Path) -> list[tuple[str, str]]:
    path = folder / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(entry["out"], entry["status"]) for entry in lines]


def run(jobs: Path, out: Path, model: Path, *more: str) -> int:
    return main(["render", "--batch", str(jobs), "-o", str(out), "--weights", str(model), *more])


def test_a_failure_costs_only_its_job_and_the_next_run_renders_what_is_missing(
    jobs: Path, voice: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, opened = tmp_path / "out", list[Avatar]()

    class Counted(Avatar):
        def __init__(self, *more: Any) -> None:
            opened.append(self)
            super().__init__(*more)

    monkeypatch.setattr(batch_module, "Avatar", Counted)
    assert run(jobs, out, small_model) == 2
    said = capsys.readouterr()
    assert len(opened) == 1  # one model for all
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["[1/5] face-voice.mp4", "[3/5] other.mp4", "[5/5] last.mp4", str(out)]
    assert "3 rendered, 0 were there, 2 failed, of 5" in said.out
    errors = said.err.splitlines()
    assert len(errors) == 3 and "line 3, face-missing.mp4: there is no audio file" in errors[0] and "line 5, face-bad.mp4" in errors[1]
    assert errors[2].startswith("everface: 2 of 5 videos failed")
    names = {"face-voice.mp4", "other.mp4", "last.mp4"}
    assert {p.name for p in out.iterdir()} == names | {"manifest.jsonl"}
    assert all(probe_video(out / name).frames == 53 for name in names)
    alone = tmp_path / "alone.mp4"
    assert main(["render", str(tmp_path / "face.png"), str(voice), "-o", str(alone), "--weights", str(small_model), "--seed", "9"]) == 0
    assert np.array_equal(np.stack(list(read_frames(alone))), np.stack(list(read_frames(out / "other.mp4"))))

    shutil.copy(voice, tmp_path / "missing.wav")
    before = {name: (out / name).stat().st_mtime_ns for name in names}
    (out / "last.mp4").write_bytes((out / "last.mp4").read_bytes()[:-100])  # no longer what was finished
    capsys.readouterr()
    assert run(jobs, out, small_model) == 2
    assert "2 rendered, 2 were there, 1 failed, of 5" in capsys.readouterr().out
    assert [name for name in names if (out / name).stat().st_mtime_ns == before[name]] == [n for n in names if n != "last.mp4"]
    jobs.write_text(jobs.read_text().replace("bad.wav", "voice.wav").replace("voice.wav,,\nface.png,voice.wav,last", "voice.wav,more.mp4,\nface.png,voice.wav,last"))
    assert run(jobs, out, small_model) == 0
    assert "1 rendered, 4 were there, 0 failed, of 5" in capsys.readouterr().out
    assert run(jobs, out, small_model, "--sampler", "skip-null") == 0  # other settings make other videos
    assert "5 rendered, 0 were there" in capsys.readouterr().out
    assert batch_module._settings(read_jobs(jobs, StreamConfig(crop="center"))[0]) != batch_module._settings(read_jobs(jobs, StreamConfig())[0])


def test_only_videos_of_a_batch_are_replaced(jobs: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.write_text("image,audio,out\nface.png,voice.wav,mine.mp4\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.mp4").write_text("precious")
    assert run(jobs, out, small_model) == 2
    assert (out / "mine.mp4").read_text() == "precious" and "no batch has made it" in capsys.readouterr().err
    assert run(jobs, out, small_model) == 2  # nor does the failure make it ours
    assert (out / "mine.mp4").read_text() == "precious"
    assert run(jobs, out, small_model, "--force") == 0
    assert probe_video(out / "mine.mp4").frames == 53


@pytest.mark.long
def test_after_an_interruption_the_same_command_goes_on(jobs: Path, small_model: Path, tmp_path: Path) -> None:
    jobs.write_text("image,audio,out\n" + "".join(f"face.png,voice.wav,{n}.mp4\n" for n in range(4)))
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "everface", "render", "--batch", str(jobs), "-o", str(out), "--weights", str(small_model)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            done, end_s = 1 if number == signal.SIGTERM else 2, time.monotonic() + 90
            while time.monotonic() < end_s and ([s for _, s in entries(out)].count("done") < done or entries(out)[-1][1] != "started"):
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == (143 if number == signal.SIGTERM else -9), said
        if number == signal.SIGTERM:
            assert "1 of 4 videos are complete" in said and "the same command goes on" in said
            assert not list(out.glob("*unfinished*")) and not list(out.glob(".everface*"))
    with open(out / "manifest.jsonl", "ab") as file:
        file.write(b'{"out": "3.mp4", "stat')  # a line that was cut off
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("[0-9].mp4")}
    assert len(finished) == 2
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and "2 rendered, 2 were there, 0 failed, of 4" in done.stdout, done
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert all(probe_video(out / f"{n}.mp4").frames == 53 for n in range(4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("face.png voice.wav --batch jobs.csv -o out", "named in its table"),
        ("--batch jobs.csv -o -", "named in its table"),
        ("--batch none.csv -o out", "no table of jobs"),
        ("--batch jobs.csv -o jobs.csv", "cannot be used as the folder"),
        ("face.png -o x.mp4", "an image and audio are needed"),
    ],
)
def test_wrong_command_lines(words: str, message: str, jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(jobs.parent)
    assert main(["render", *words.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err, err


def test_two_batches_do_not_share_a_folder(jobs: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from everface.avatar.manifest import Manifest

    manifest = Manifest(tmp_path / "out")
    assert run(jobs, tmp_path / "out", small_model) == 2
    assert "another batch is writing" in capsys.readouterr().err
    manifest.close()


def test_a_cell_may_have_what_only_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text('image,audio,prompt\na.png,b.wav,calm\u2028face\x85\x0c\nc.png,d.wav,"two\nlines"\n', encoding="utf-8")
    rows = list(JOBS.rows(path))
    assert [(line, row["prompt"]) for line, row in rows] == [(2, "calm\u2028face"), (4, "two\nlines")]
