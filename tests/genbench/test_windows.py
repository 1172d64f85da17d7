"""Windows of a file: its frames at 25 per second with its audio at the same time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tests.genbench.conftest import FRAMES, Draw

from everface.genbench.clips.speed import growth
from everface.genbench.manifest import BenchmarkSet
from everface.genbench.metrics.av_sync import AVSync
from everface.genbench.windows import cut_box, mouth_of, read_windows
from everface.media.video_writer import VideoWriter


def write_video(path: Path, draw: Draw, late: int = 0, sound: bool = True) -> Path:
    """The first character's video, its audio so many frames later."""
    window = draw(0)
    with VideoWriter(path, 128, 128, 16_000 if sound else None) as writer:
        if sound:
            writer.write_audio(torch.cat([torch.zeros(late * 640), window.pcm_S])[: FRAMES * 640].numpy())
        writer.write(window.frames_THW3.numpy())
    return path


def test_frames_and_audio_of_a_file_are_those_that_were_written(tmp_path: Path, draw: Draw, small_set: BenchmarkSet) -> None:
    video = write_video(tmp_path / "a.mp4", draw)
    (window,) = read_windows(video, small_set.samples[0], small_set)
    assert len(window.frames_THW3) == FRAMES and len(window.pcm_S) == FRAMES * 640
    assert (window.frames_THW3.float() - draw(0).frames_THW3.float()).abs().mean() < 3
    written = draw(0).pcm_S
    shifts = {s: float((window.pcm_S[1000:-1000] * written.roll(s)[1000:-1000]).sum()) for s in range(-200, 201, 4)}
    assert abs(max(shifts, key=lambda s: shifts[s])) <= 8  # samples: the encoder's delay is taken out
    assert torch.equal(window.reference_HW3, draw(0).reference_HW3)


def test_audio_that_is_late_in_the_file_is_found(tmp_path: Path, draw: Draw, small_set: BenchmarkSet) -> None:
    video = write_video(tmp_path / "a.mp4", draw, late=4)
    (window,) = read_windows(video, small_set.samples[0], small_set)
    assert AVSync().measure(window)["av_offset"] == -4


def test_a_video_without_audio_is_measured_with_the_voice(tmp_path: Path, draw: Draw, small_set: BenchmarkSet) -> None:
    video = write_video(tmp_path / "a.mp4", draw, sound=False)
    (window,) = read_windows(video, small_set.samples[0], small_set)
    assert AVSync().measure(window)["av_offset"] == 0


def numbered(path: Path, frames: int, fps: int) -> Path:
    """Frame n is of gray n modulo 200."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"qp": "0", "bf": "0"})
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.time_base = "yuv444p", Fraction(1, fps)
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), n % 200, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_later_windows_begin_where_they_should(tmp_path: Path, small_set: BenchmarkSet) -> None:
    video = numbered(tmp_path / "a.mp4", 25 * 31, 25)
    windows = list(read_windows(video, small_set.samples[0], small_set, (0.0, 20.0, 25.0)))
    assert [(w.begin_s, len(w.frames_THW3), len(w.lead_S)) for w in windows] == [(0, 250, 0), (20, 250, 32_000)]
    assert abs(int(windows[1].frames_THW3[0, 0, 0, 0]) - 500 % 200) <= 3


def test_another_frame_rate_is_brought_to_25(tmp_path: Path, small_set: BenchmarkSet) -> None:
    (window,) = read_windows(numbered(tmp_path / "a.mp4", 120, 30), small_set.samples[0], small_set)
    assert 99 <= len(window.frames_THW3) <= 100
    shown = [int(frame[0, 0, 0]) for frame in window.frames_THW3]
    assert all(abs(value - (n + 0.5) * 30 / 25) <= 4 for n, value in enumerate(shown))


def test_a_face_is_where_the_cropped_image_has_it(tmp_path: Path, draw: Draw, small_set: BenchmarkSet) -> None:
    """A square image in a video half as high: shares of its height are of the part that is shown."""
    video, sample = tmp_path / "a.mp4", small_set.samples[0]
    sample.face = (0.25, 0.375, 0.75, 0.875)
    with VideoWriter(video, 64, 128, None) as writer:
        writer.write(draw(0).frames_THW3[:, 32:96].contiguous().numpy())
    (window,) = read_windows(video, sample, small_set)
    assert window.face == pytest.approx((0.25, 0.25, 0.75, 1.0))


def test_regions(draw: Draw) -> None:
    assert mouth_of((0.125, 0.125, 0.875, 0.875)) == pytest.approx((0.25, 0.5, 0.75, 0.875))  # where drawn mouths are
    assert cut_box(torch.zeros(2, 100, 200, 3), (0.25, 0.5, 0.75, 1.0)).shape == (2, 50, 100, 3)
    assert draw(0).region(None).shape == draw(0).frames_THW3.shape
    assert replace(draw(0), face=None).rgb(0, 3).shape == (3, 3, 128, 128)


def test_growth_of_memory_is_a_slope_after_warming_up() -> None:
    flat = [(float(t), 500.0 + 300 * (t < 15)) for t in range(0, 200, 10)]
    assert growth(flat)["memory_mb_per_1000s"] == pytest.approx(0, abs=1e-6)
    assert growth([(t, mb + 0.02 * t) for t, mb in flat])["memory_mb_per_1000s"] == pytest.approx(20)
    assert growth(list(itertools.islice(flat, 5))) == {}
