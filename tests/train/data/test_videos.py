"""Videos become clips: 25 frames a second at any rate, audio in sync, bad lines skipped, nothing done twice."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open

from everface.core.errors import BadInput
from everface.media.video_writer import VideoWriter
from everface.networks.audio.features import LogMel
from everface.train.data import videos
from everface.train.data.clips import MOVING_LATENTS, read_clips
from everface.train.data.video_reader import read_frames
from everface.train.synthetic.voices import write_wav

FLASH = 40  # the frame that is white while the audio clicks


def write_video(path: Path, frames: int, flash: int = FLASH) -> Path:
    """Dark, 96x64, 25 frames per second, with 48 kHz audio that is silent except for one frame."""
    click = np.zeros((frames * 1920, 1), np.float32)
    click[flash * 1920 : (flash + 1) * 1920, 0] = np.random.default_rng(0).uniform(-0.8, 0.8, 1920)
    with VideoWriter(path, 64, 96, 48_000) as writer:
        for n in range(frames):
            writer.write(np.full((1, 64, 96, 3), 255 if n == flash else 8 * (n % 4), np.uint8))
            writer.write_audio(click[n * 1920 : (n + 1) * 1920])
    return path


def manifest(folder: Path, *lines: object) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def cut(folder: Path, **paths: str) -> list[videos.Clip]:
    return list(videos.cut_clips(videos.read_line(json.dumps(paths), folder), (64, 64), LogMel()))


@pytest.mark.parametrize("apart", [False, True], ids=["the video's own audio", "a file of its own"])
def test_video_and_audio_are_in_sync(tmp_path: Path, apart: bool) -> None:
    """In the second clip of a video as well: the flash and the click share one frame."""
    write_video(tmp_path / "a.mp4", 150, flash=64 + FLASH)
    if apart:
        click = torch.zeros(150 * 640)
        click[(64 + FLASH) * 640 : (65 + FLASH) * 640] = torch.rand(640, generator=torch.Generator().manual_seed(0)) - 0.5
        write_wav(tmp_path / "a.wav", click)
    clips = cut(tmp_path, video="a.mp4", **({"audio": "a.wav"} if apart else {}))
    assert len(clips) == 2
    for n, (rgb_3THW, features_LCF) in enumerate(clips):
        assert rgb_3THW.shape == (3, 5 + 64, 64, 64) and features_LCF.shape == (1, 160, 5 + 64)
        light, loud = rgb_3THW.mean((0, 2, 3)), features_LCF.mean((0, 1))
        assert light[:5].max() < -0.8 and torch.equal(rgb_3THW[:, 0], clips[0][0][:, 5]), "the still is the video's first frame"
        if n == 1:
            assert int(light.argmax()) == 5 + FLASH and abs(int(loud.argmax()) - 5 - FLASH) <= 1
            assert loud[5 + FLASH - 3] < loud.max() - 1
        else:
            assert light.max() < -0.8 and loud.max() < loud.mean() + 0.5


@pytest.mark.parametrize("fps", [10, 30, 50])
def test_any_rate_becomes_25_frames_a_second(tmp_path: Path, fps: int) -> None:
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 64, "yuv420p", {"crf": "10"}
        for n in range(fps * 2):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200 * n // (fps * 2) + 20, np.uint8), "rgb24")
            frame.pts, frame.time_base = n, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    made = torch.stack(list(read_frames(tmp_path / "b.mp4", (64, 64))))
    gray = (made.mean((1, 2, 3)) + 1) * 127.5
    assert abs(len(made) - 50) <= 2
    shown = (torch.arange(len(made)) / 25 * fps + 1e-3).floor().clamp(max=fps * 2 - 1)
    assert (gray - 20 - 200 * shown / (fps * 2)).abs().max() < 4


def test_a_manifest_becomes_shards_and_bad_lines_are_reported(
    vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    write_video(tmp_path / "a.mp4", 70)
    write_video(tmp_path / "b.mp4", 135)
    write_video(tmp_path / "short.mp4", 50)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:700])
    (tmp_path / "a.txt").write_text("A person talks.\n")
    good = [{"video": "a.mp4", "caption": "a.txt"}, {"video": "b.mp4"}]
    lines = [good[0], "{not json", {"video": "broken.mp4"}, {"audio": "a.wav"}, {"video": "none.mp4"}, {"video": "short.mp4"}, good[1]]
    said: list[str] = []
    clips = videos.encode_manifest(manifest(tmp_path, *lines), tmp_path / "data", vae_run, count=9, minutes=5, report=said.append)
    assert [s.split(": ")[0] for s in said[1:6]] == [f"line {n} of 7 is skipped" for n in (2, 3, 4, 5, 6)], said
    assert said[0] == "line 1 of 7: a.mp4, 1 clips, 1 in all" and all(s.count("\n") == 0 for s in said)
    assert "3 clips of 2 videos" in said[-1] and "5 lines skipped" in said[-1]
    first = read_clips(clips)
    assert first.latents_N16Thw.shape == (3, 16, 2 + MOVING_LATENTS, 16, 16) and first.features_NLCF.shape == (3, 1, 160, 69)
    assert torch.isfinite(first.latents_N16Thw).all()
    captions = [safe_open(p, "pt").metadata()["caption"] for p in sorted(clips.glob("*.safetensors"))]
    assert sorted(captions) == ["", "A person talks."]

    # Again, in another order and with one line more: what is done is left alone.
    write_video(tmp_path / "c.mp4", 64)
    encoded: list[str] = []
    encode = videos.encode_video
    monkeypatch.setattr(videos, "encode_video", lambda one, *more: encoded.append(one.video.name) or encode(one, *more))
    videos.encode_manifest(manifest(tmp_path, good[1], {"video": "c.mp4"}, good[0]), tmp_path / "data", vae_run, count=9, minutes=5)
    assert encoded == ["c.mp4"] and len(read_clips(clips)) == 4


def test_a_video_that_was_stopped_half_way_is_done_again(vae_run: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "b.mp4", 135)
    lines = manifest(tmp_path, {"video": "b.mp4"})
    clips = videos.encode_manifest(lines, tmp_path / "data", vae_run, count=1, minutes=5)
    assert len(read_clips(clips)) == 1
    videos.encode_manifest(lines, tmp_path / "data", vae_run, count=9, minutes=5)
    assert len(read_clips(clips)) == 2


def test_a_manifest_without_a_clip_is_refused(vae_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no line"):
        videos.encode_manifest(manifest(tmp_path, {"video": "none.mp4"}), tmp_path / "data", vae_run, count=1, minutes=1)
    with pytest.raises(BadInput, match="unknown sound"):
        videos.read_line('{"video": "a.mp4", "sound": "a.wav"}', tmp_path)
    with pytest.raises(BadInput, match="cannot read the manifest"):
        videos.encode_manifest(tmp_path / "none.jsonl", tmp_path / "data", vae_run, count=1, minutes=1)
