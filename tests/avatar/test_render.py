"""Rendering as a user does it: files in, mp4 out, decoded again; and every refusal leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.weights.official import write_official

from everface.avatar.render import RenderJob, render
from everface.cli import main
from everface.core.config import Deployment, StreamConfig
from everface.media.video import probe_video, read_frames
from everface.train.synthetic.voices import write_wav


def frames_of(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def test_render_from_the_command_line(small_model: Path, face: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "talk.mp4"
    assert main(["render", str(face), str(voice), "-o", str(out), "--weights", str(small_model), "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "53" in said and str(out) in said and "seed" in said
    info = probe_video(out)
    assert (info.fps, info.frames, info.width, info.height) == (25, 53, 64, 64)  # ceil(2.1 s * 25)
    assert info.audio_duration_s is not None and abs(info.duration_s - info.audio_duration_s) <= 0.04
    assert [p.name for p in tmp_path.iterdir()] == ["talk.mp4"]


def test_seed_sampler_and_compat_change_the_video(small_model: Path, face: Path, voice: Path, tmp_path: Path) -> None:
    def frames(*flags: str) -> np.ndarray:
        out = tmp_path / "x.mp4"
        flags = ("--weights", str(small_model), "--force", *flags)
        assert main(["render", str(face), str(voice), "-o", str(out), *flags]) == 0
        return frames_of(out)

    base = frames("--seed", "3")
    assert np.array_equal(base, frames("--seed", "3"))
    assert not np.array_equal(base, frames("--seed", "4"))
    assert not np.array_equal(base, frames("--seed", "3", "--sampler", "skip-null"))
    assert len(frames("--seed", "3", "--compat", "official")) == 50  # upstream drops the first three frames


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8-attention"])
def test_every_dtype_renders_nearly_the_same(dtype: str, small_model: Path, face: Path, voice: Path, tmp_path: Path) -> None:
    stream, made = StreamConfig(seed=3), {}
    for of in ("float32", dtype):
        job = RenderJob(face, voice, tmp_path / f"{of}.mp4", small_model, stream=stream, deployment=Deployment(dtype=of))
        assert render(job).frames == 53
        made[of] = frames_of(tmp_path / f"{of}.mp4").astype(np.float32)
    off = np.abs(made[dtype] - made["float32"]).mean()
    assert off < 6 and (dtype == "bfloat16" or off > 0), off


def test_official_layout_renders(face: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharded safetensors, .pth parts, wav2vec2 folder, tokenizer and LoRA, all in the released layout at tiny sizes."""
    monkeypatch.setenv("EVERFACE_CACHE", str(tmp_path / "cache"))
    write_official(tmp_path / "model", seed=1)
    out = tmp_path / "talk.mp4"
    flags = ["--weights", str(tmp_path / "model"), "--size", "64x64", "--prompt", "a cat on a surfboard"]
    assert main(["render", str(face), str(voice), "-o", str(out), *flags]) == 0
    info = probe_video(out)
    assert (info.frames, info.width, info.height) == (53, 64, 64)
    assert frames_of(out).std() > 1


REFUSALS = {
    "no such picture": (["{tmp}/none.png", "{voice}"], "none.png"),
    "not an image": (["{voice}", "{voice}"], "voice.wav"),
    "no such sound": (["{face}", "{tmp}/none.wav"], "none.wav"),
    "not a sound": (["{face}", "{face}"], "face.png"),
    "too short": (["{face}", "{tmp}/short.wav"], "short.wav"),
    "odd size": (["{face}", "{voice}", "--size", "100x50"], "64x64"),
    "other weights": (["{face}", "{voice}", "--weights", "{tmp}"], "config.json"),
    "unwritable": (["{face}", "{voice}", "-o", "{tmp}/no/such/folder/x.mp4"], "no/such/folder"),
    "not mp4": (["{face}", "{voice}", "-o", "{tmp}/x.avi"], "x.avi"),
    "negative seed": (["{face}", "{voice}", "--seed", "-1"], "seed"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(
    case: str, small_model: Path, face: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    write_wav(tmp_path / "short.wav", torch.zeros(160))
    before = sorted(tmp_path.rglob("*"))
    words, named = REFUSALS[case]
    args = [w.format(tmp=tmp_path, face=face, voice=voice) for w in words]
    if "-o" not in args:
        args += ["-o", str(tmp_path / "x.mp4")]
    if "--weights" not in args:
        args += ["--weights", str(small_model)]
    try:
        code = main(["render", *args])
    except SystemExit as stop:  # argparse
        code = stop.code
    said = capsys.readouterr().err.strip()
    assert code == 2 and said.startswith("everface: ") and "\n" not in said and named in said, said
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_file_is_kept(small_model: Path, face: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "x.mp4"
    out.write_text("precious")
    assert main(["render", str(face), str(voice), "-o", str(out), "--weights", str(small_model)]) == 2
    assert out.read_text() == "precious" and "--force" in capsys.readouterr().err


def test_demo_with_the_shipped_model(tmp_path: Path) -> None:
    """What `make demo` runs: the default weights, picture and clip."""
    assert main(["demo", "-o", str(tmp_path)]) == 0
    report, info = json.loads((tmp_path / "demo.json").read_text()), probe_video(tmp_path / "demo.mp4")
    assert info.frames == report["frames"] and info.duration_s >= 8 and info.fps == 25
    assert info.audio_duration_s is not None and abs(info.duration_s - info.audio_duration_s) <= 0.04
    frames = frames_of(tmp_path / "demo.mp4").astype(np.float32)
    mouth, corner = frames[:, 80:110, 40:88], frames[:, :12, :12]
    assert np.abs(np.diff(mouth, axis=0)).mean() > 2 * np.abs(np.diff(corner, axis=0)).mean()  # the mouth moves, the wall does not
