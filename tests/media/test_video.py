"""The written MP4: when decoded, audio and video agree to the frame, however the writing ended."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput, Unavailable
from everface.media.video import probe_video, read_frames
from everface.media.video_writer import VideoWriter

H, W = 64, 96
FLASH = 13  # the frame that is white and beeps


def pattern(count: int, flash: int = FLASH) -> np.ndarray:
    """A gray bar moving down one row a frame; frame `flash` is white."""
    frames_THW3 = np.zeros((count, H, W, 3), np.uint8)
    for i in range(count):
        frames_THW3[i, i % (H - 8) : i % (H - 8) + 8] = 128
    frames_THW3[flash] = 255
    return frames_THW3


def beep(count: int, rate: int, flash: int = FLASH) -> np.ndarray:
    """Silence with 40 ms of 1 kHz exactly during frame `flash`."""
    x_S = np.zeros(count * rate // 25, np.float32)
    at, long = flash * rate // 25, rate // 25
    x_S[at : at + long] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(long) / rate)
    return x_S


def decode_audio(path: Path) -> tuple[np.ndarray, int]:
    """All audio from time 0 as [S, C], and its rate."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.audio[0]))
        assert frames[0].time == 0
        return np.concatenate([f.to_ndarray() for f in frames], axis=1).T, frames[0].sample_rate


def onset_s(x_S: np.ndarray, rate: int) -> float:
    return int(np.argmax(np.abs(x_S) > 0.2)) / rate


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


def test_an_interrupted_file_plays(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        writer.write_audio(beep(200, SAMPLE_RATE))
        writer.write(pattern(37))
        raise KeyboardInterrupt
    info = probe_video(tmp_path / "a.mp4")
    assert info.frames == len(list(read_frames(tmp_path / "a.mp4"))) == 37
    assert info.audio_duration_s is not None and abs(info.audio_duration_s - 37 / 25) < 0.04
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_without_frames_nothing_is_left(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        writer.write_audio(np.zeros(640, np.float32))
        raise ZeroDivisionError
    with pytest.raises(BadInput, match="no frame was written"), VideoWriter(tmp_path / "a.mp4", H, W):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_final_name_appears_only_at_close(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_text("an older video")
    writer = VideoWriter(path, H, W)
    writer.write(pattern(60))
    hidden = [p for p in tmp_path.iterdir() if p != path]
    assert path.read_text() == "an older video" and len(hidden) == 1 and hidden[0].name.startswith(".")
    writer.close()
    writer.close()
    assert probe_video(path).frames == 60 and list(tmp_path.iterdir()) == [path]
    with pytest.raises(BadInput, match="closed"):
        writer.write(pattern(14))


def test_a_killed_writer_leaves_playable_seconds(tmp_path: Path):
    writer = VideoWriter(tmp_path / "a.mp4", H, W)
    for _ in range(10):
        writer.write_audio(np.zeros(25 * SAMPLES_PER_FRAME, np.float32))
        writer.write(pattern(25))
    (part,) = tmp_path.iterdir()  # as SIGKILL would leave it
    assert probe_video(part).frames >= 125
    writer.close()


def test_bad_targets(tmp_path: Path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    cases = [
        (tmp_path / "none" / "a.mp4", (H, W), "no folder"),
        (tmp_path / "file" / "a.mp4", (H, W), "no folder"),
        (tmp_path / "folder.mp4", (H, W), "is a folder"),
        (Path("/proc/a.mp4"), (H, W), "cannot write"),
        (tmp_path / "a.webm", (H, W), "end the name with .mp4"),
        (tmp_path / "a.mp4", (63, 96), "use 96x62"),
        (tmp_path / "a.mp4", (64, 97), "use 96x64"),
        (tmp_path / "a.mp4", (0, 64), "use 64x2"),
    ]
    for path, size, message in cases:
        with pytest.raises(BadInput, match=message) as caught:
            VideoWriter(path, *size)
        assert "\n" not in str(caught.value)
    for rate, channels, message in ((0, 1, "0 Hz"), (16_000, 3, "3 audio channels")):
        with pytest.raises(BadInput, match=message):
            VideoWriter(tmp_path / "a.mp4", H, W, rate, channels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_bad_data(tmp_path: Path):
    with VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        for frames in (np.zeros((1, H, W, 4), np.uint8), np.zeros((1, H, W, 3), np.float32), np.zeros((H, W, 3), np.uint8)):
            with pytest.raises(BadInput, match="do not fit"):
                writer.write(frames)
        with pytest.raises(BadInput, match="does not fit"):
            writer.write_audio(np.zeros((640, 2), np.float32))
        with pytest.raises(BadInput, match="not finite"):
            writer.write_audio(np.array([0, np.nan], np.float32))
        writer.write(pattern(14))
    assert probe_video(tmp_path / "a.mp4").frames == 14


def test_audio_and_video_may_not_drift_apart_without_bound(tmp_path: Path):
    second_S, second_THW3 = np.zeros(SAMPLE_RATE, np.float32), pattern(25)
    with VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        with pytest.raises(BadInput, match="audio is 30 s ahead"):
            for _ in range(40):
                writer.write_audio(second_S)
        with pytest.raises(BadInput, match="video is 30 s ahead"):
            for _ in range(80):
                writer.write(second_THW3)
    info = probe_video(tmp_path / "a.mp4")
    assert 61 <= info.frames / 25 <= 62
    assert info.audio_duration_s is not None and abs(info.audio_duration_s - info.frames / 25) < 0.04


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (25, H, W, 3), np.uint8)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the kernel returns EFBIG (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(path: Path) -> str:
    """Write noise until the disk is full; returns the error's text."""
    with pytest.raises(Unavailable) as caught, VideoWriter(path, H, W) as writer:
        for seed in range(400):
            writer.write_audio(np.zeros(SAMPLE_RATE, np.float32))
            writer.write(noise(seed))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_kept(path: Path, message: str) -> None:
    info = probe_video(path)
    assert info.frames == len(list(read_frames(path))) >= 25 and info.frames % 25 == 0
    assert f"the first {info.duration_s:.1f} s are kept" in message
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_keeps_what_plays(tmp_path: Path):
    with small_disk(tmp_path):
        message = fill(tmp_path / "a.mp4")
        assert "No space left on device" in message
        check_kept(tmp_path / "a.mp4", message)


def test_a_full_disk_at_the_start_keeps_nothing(tmp_path: Path):
    with small_disk(tmp_path):
        (tmp_path / "other").write_bytes(bytes(2**20 - 4096 * 3))
        assert "nothing is kept" in fill(tmp_path / "a.mp4")
        assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_a_file_size_limit_keeps_what_plays(tmp_path: Path):
    with file_limit(2**20):
        message = fill(tmp_path / "a.mp4")
    assert "File too large" in message
    check_kept(tmp_path / "a.mp4", message)


def test_a_disk_that_fills_at_close(tmp_path: Path):
    writer = VideoWriter(tmp_path / "a.mp4", H, W)
    for seed in range(3):
        writer.write(noise(seed))
    (part,) = tmp_path.iterdir()
    with file_limit(max(part.stat().st_size, 1) + 4096), pytest.raises(Unavailable, match="cannot write"):
        writer.close()
    assert all(p.name == "a.mp4" for p in tmp_path.iterdir())


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


def test_readers_refuse_files_without_video(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("words")
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
    cases = {"none.mp4": "no video file", "text.mp4": "not a readable video file", "a.wav": "contains no video"}
    for name, message in cases.items():
        with pytest.raises(BadInput, match=message):
            probe_video(tmp_path / name)
        with pytest.raises(BadInput, match=message):
            list(read_frames(tmp_path / name))
