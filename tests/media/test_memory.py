"""Reading the starts of files, as a server does with each upload, keeps no memory; nor does a live stream keep any of what it has shown."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from everface.live.events import AudioFrame, VideoFrame
from everface.media.audio import probe_audio, read_audio
from everface.media.audio_stream import AudioStream
from everface.media.video import read_frames
from everface.serve.stream.encoders import Mp4Encoder
from everface.train.data.video_reader import first_time_s

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
RUNS = 200


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]]


@pytest.fixture(scope="module")
def used() -> Callable[[], int]:
    """Bytes that the C library has given out."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform.startswith("linux") else None
    if mallinfo is None:
        pytest.skip("counts by glibc's mallinfo2")
    mallinfo.restype = MallInfo

    def count() -> int:
        gc.collect()
        info = mallinfo()
        return info.uordblks + info.hblkhd

    return count


def first_samples(path: Path) -> None:
    next(iter(read_audio(path, 160)))


def first_frame(path: Path) -> None:
    next(iter(read_frames(path)))


def first_time(path: Path) -> None:
    first_time_s(path, "video")


def start_of_stream(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        stream = AudioStream(descriptor)
        stream.info()
        stream.close()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("read", "path"),
    [(probe_audio, "audio/mp3"), (probe_audio, "audio/ogg"), (first_samples, "audio/flac"), (start_of_stream, "stream/mp3"), (first_frame, "video/mp4"), (first_time, "video/mp4")],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_read_in_part_keeps_no_memory(used: Callable[[], int], read: Callable[[Path], object], path: str) -> None:
    for _ in range(20):
        read(CORPUS / path)
    before = used()
    for _ in range(RUNS):
        read(CORPUS / path)
    assert (used() - before) / RUNS < 100


def test_a_live_stream_keeps_nothing_of_its_frames(used: Callable[[], int]) -> None:
    encoder, image_HW3, samples_SC = Mp4Encoder(16_000, 1, 25), np.zeros((64, 64, 3), np.uint8), np.zeros((640, 1), np.int16)
    encoder.open(64, 64)

    def stream(frames: range) -> None:
        for n in frames:
            encoder.encode(VideoFrame(image_HW3, 640 * n, n / 25, False))
            encoder.encode(AudioFrame(samples_SC, 16_000, 640 * n, n / 25))

    stream(range(1000))
    before = used()
    stream(range(1000, 4000))
    assert (used() - before) / 3000 < 20  # an index of all fragments takes 120
    assert b"mfra" not in b"".join(encoder.close())
