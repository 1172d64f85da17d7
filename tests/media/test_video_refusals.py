"""Targets, data and files that cannot be used are refused in one clear sentence."""

from pathlib import Path

import av
import numpy as np
import pytest
from tests.media.films import H, W, pattern

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.media.video import probe_video, read_frames
from everface.media.video_writer import VideoWriter


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
