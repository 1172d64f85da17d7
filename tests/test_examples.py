"""The examples run as they are."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.test_speakers import SIDE, two_faces

from everface.media.video import probe_video
from everface.train.synthetic.voices import write_wav

ROOT = Path(__file__).parents[1]


def test_talk_turns_audio_into_frames() -> None:
    face = ROOT / "python" / "everface" / "default" / "ada.png"
    t = np.arange(int(1.3 * 16_000)) / 16_000
    pcm_bytes = (8000 * np.sin(2 * np.pi * 180 * t) * (np.sin(2 * np.pi * 3 * t) > 0)).astype("<i2").tobytes()
    done = subprocess.run([sys.executable, ROOT / "examples" / "talk.py", face], input=pcm_bytes, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, SIDE, SIDE, 3)
    assert len(frames) == 33  # ceil(1.3 s * 25)
    assert frames.std() > 20


def test_livetalk_writes_a_video_at_its_rate(
    small_live_talk: Path, face: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "talk.mp4"
    monkeypatch.setattr(sys, "argv", ["livetalk.py", *map(str, (face, voice, out, small_live_talk))])
    runpy.run_path(str(ROOT / "examples" / "livetalk.py"), run_name="__main__")
    assert (probe_video(out).frames, probe_video(out).fps) == (34, 16) and "34 frames at 16" in capsys.readouterr().out
    assert len((ROOT / "examples" / "livetalk.py").read_text().splitlines()) < 40


def test_shots_cuts_between_two_people(
    face: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    out = tmp_path / "talk.mp4"
    monkeypatch.setattr(sys, "argv", ["shots.py", *map(str, (face, ROOT / "python" / "everface" / "default" / "ben.png", voice, out))])
    runpy.run_path(str(ROOT / "examples" / "shots.py"), run_name="__main__")
    assert probe_video(out).frames == 53 and "53 frames, 2 shots" in capsys.readouterr().out
    assert len((ROOT / "examples" / "shots.py").read_text().splitlines()) < 40


def test_kv_keep_prints_what_a_share_of_the_keys_costs(
    voice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    face = ROOT / "python" / "everface" / "default" / "ada.png"
    monkeypatch.setattr(sys, "argv", ["kv_keep.py", str(face), str(voice), "0.667"])
    runpy.run_path(str(ROOT / "examples" / "kv_keep.py"), run_name="__main__")
    *speeds, psnr = capsys.readouterr().out.splitlines()
    assert [line.split(" of ")[0] for line in speeds] == ["1", "0.667"] and 40 < float(psnr.split()[1]) < 100
    assert len((ROOT / "examples" / "kv_keep.py").read_text().splitlines()) < 40


def test_two_speakers_writes_both_voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    voices, out = [tmp_path / "left.wav", tmp_path / "right.wav"], tmp_path / "talk.mp4"
    for path, seconds, hz in zip(voices, (1.0, 0.6), (200, 400), strict=True):
        write_wav(path, 0.3 * torch.sin(2 * torch.pi * hz / 16_000 * torch.arange(int(seconds * 16_000))))
    two_faces(SIDE).save(tmp_path / "both.png")
    monkeypatch.setattr(sys, "argv", ["two_speakers.py", *map(str, (tmp_path / "both.png", *voices, out))])
    runpy.run_path(str(ROOT / "examples" / "two_speakers.py"), run_name="__main__")
    assert probe_video(out).frames == 25 and "25 frames of two speakers" in capsys.readouterr().out
    assert len((ROOT / "examples" / "two_speakers.py").read_text().splitlines()) < 40


def test_listening_writes_the_question_and_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], face: Path, small_listener: Path, small_model: Path
) -> None:
    voices, out = [tmp_path / "question.wav", tmp_path / "answer.wav"], tmp_path / "talk.mp4"
    for path, hz in zip(voices, (200, 400), strict=True):
        write_wav(path, 0.3 * torch.sin(2 * torch.pi * hz / 16_000 * torch.arange(8_000)))
    given = ["listening.py", *map(str, (face, *voices, out))]
    monkeypatch.setattr(sys, "argv", [*given, str(small_listener)])
    runpy.run_path(str(ROOT / "examples" / "listening.py"), run_name="__main__")
    assert probe_video(out).frames == 25 and "25 frames of a question and its answer" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*given, str(small_model)])
    with pytest.raises(SystemExit, match="was not trained to listen"):
        runpy.run_path(str(ROOT / "examples" / "listening.py"), run_name="__main__")
    assert len((ROOT / "examples" / "listening.py").read_text().splitlines()) < 40
