"""The written MP4, decoded again: audio and video agree to the frame."""

import os
import subprocess
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from tests.media.films import FLASH, H, W, beep, decode_audio, onset_s, pattern

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput
from everface.media.video import probe_video, read_frames
from everface.media.video_writer import VideoWriter


@pytest.mark.parametrize("count", [25, 250, 262])
@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_flash_and_beep_agree(tmp_path: Path, count: int, rate: int):
    path = tmp_path / "a.mp4"
    frames_THW3, audio_S = pattern(count), beep(count, rate)
    with VideoWriter(path, H, W, rate) as writer:
        for i in range(0, count, 12):
            writer.write_audio(audio_S[i * rate // 25 : (i + 12) * rate // 25])
            writer.write(frames_THW3[i : i + 12])
    info = probe_video(path)
    assert (info.codec, info.width, info.height, info.frames) == ("h264", W, H, count)
    assert info.fps == pytest.approx(25) and info.duration_s == pytest.approx(count / 25)
    assert info.audio_codec == "aac" and info.audio_rate_hz == (48_000 if rate == 16_000 else rate) and info.audio_channels == 1
    assert info.audio_duration_s is not None and abs(info.audio_duration_s - count / 25) < 0.04
    decoded = list(read_frames(path))
    assert len(decoded) == count
    assert np.argmax([f.mean() for f in decoded]) == FLASH
    for i in (0, 1, count // 2, count - 1):
        assert np.abs(decoded[i].astype(int) - frames_THW3[i]).mean() < 3  # one row further would be 3.9 and more
    x_SC, got_rate = decode_audio(path)
    assert abs(len(x_SC) / got_rate - count / 25) < 0.04
    assert abs(onset_s(x_SC[:, 0], got_rate) - FLASH / 25) < 0.002
    with av.open(str(path)) as container:
        times = [f.time for f in container.decode(container.streams.video[0])]
    assert np.allclose(np.array(times, float), np.arange(count) / 25, atol=1e-4)


def test_an_independent_reader_agrees(tmp_path: Path):
    """The ffmpeg program, where there is one, counts and times the same."""
    path = tmp_path / "a.mp4"
    with VideoWriter(path, H, W) as writer:
        writer.write_audio(beep(50, SAMPLE_RATE))
        writer.write(pattern(50))
    try:
        command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v", "-of", "csv=p=0"]
        entries = "stream=r_frame_rate,start_time,duration,nb_read_frames,color_space,color_range"
        out = subprocess.run([*command, "-show_entries", entries, str(path)], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no ffprobe on this machine")
    assert sorted(out.strip().split(",")) == sorted(["tv", "bt709", "25/1", "0.000000", "2.000000", "50"])


def test_colors_survive(tmp_path: Path):
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (230, 180, 150), (128, 128, 128), (0, 0, 0), (255, 255, 255)]
    with VideoWriter(tmp_path / "a.mp4", H, W, None) as writer:
        for color in colors:
            writer.write(np.full((1, H, W, 3), color, np.uint8))
    for frame, color in zip(read_frames(tmp_path / "a.mp4"), colors, strict=True):
        assert np.abs(frame.reshape(-1, 3).mean(0) - color).max() < 4, color


@pytest.mark.parametrize("seconds", [0.0, 1.0, 5.0])
def test_audio_is_padded_or_trimmed_to_the_video(tmp_path: Path, seconds: float):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, H, W) as writer:
        writer.write_audio(np.full(round(seconds * SAMPLE_RATE), 0.5, np.float32))
        writer.write(pattern(75))
    x_SC, rate = decode_audio(path)
    assert abs(len(x_SC) / rate - 3.0) < 0.04
    audible = np.abs(x_SC[: 3 * rate, 0]) > 0.25
    assert abs(audible.sum() / rate - min(seconds, 3.0)) < 0.01


def test_stereo_at_another_rate(tmp_path: Path):
    left_S = beep(25, 22_050)
    with VideoWriter(tmp_path / "a.mp4", H, W, 22_050, 2) as writer:
        writer.write_audio(np.stack([left_S, np.zeros_like(left_S)], 1))
        writer.write(pattern(25))
    x_SC, rate = decode_audio(tmp_path / "a.mp4")
    assert rate == 48_000 and x_SC.shape[1] == 2
    assert abs(onset_s(x_SC[:, 0], rate) - FLASH / 25) < 0.002 and np.abs(x_SC[:, 1]).max() < 0.05


def test_without_audio(tmp_path: Path):
    with VideoWriter(tmp_path / "a.mp4", H, W, None) as writer:
        writer.write(pattern(30))
        with pytest.raises(BadInput, match="without audio"):
            writer.write_audio(np.zeros(640, np.float32))
    info = probe_video(tmp_path / "a.mp4")
    assert info.frames == 30 and info.audio_codec is None and info.audio_duration_s is None


def test_memory_is_flat(tmp_path: Path):
    process, rss = psutil.Process(os.getpid()), {}
    frames_THW3, audio_S = pattern(20), np.random.default_rng(0).normal(0, 0.1, 20 * SAMPLES_PER_FRAME).astype(np.float32)
    with VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        for i in range(150):
            writer.write_audio(audio_S)
            writer.write(frames_THW3)
            rss[i] = process.memory_info().rss
    assert probe_video(tmp_path / "a.mp4").frames == 3000
    assert max(list(rss.values())[25:]) - rss[25] < 20 * 2**20  # after the first 500 frames
