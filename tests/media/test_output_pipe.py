"""A video through a pipe: every frame is there, at its time, and leaves as soon as the next is made."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from everface.core.config import SAMPLES_PER_FRAME
from everface.core.errors import Unavailable
from everface.core.standard_streams import OutputLost
from everface.media.output_pipe import OutputPipe
from everface.media.video import probe_video, read_frames
from everface.media.video_writer import VideoWriter

H = W = 64


class Reader:
    """Takes what comes from a pipe; `got` grows."""

    def __init__(self, descriptor: int) -> None:
        self.got = b""
        self._descriptor = descriptor
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        while data := os.read(self._descriptor, 1 << 16):
            self.got += data
        os.close(self._descriptor)


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    yield os.pipe()


def grays(first: int, count: int) -> np.ndarray:
    frames = np.zeros((count, H, W, 3), np.uint8)
    frames[:] = (np.arange(first, first + count) * 3)[:, None, None, None]
    return frames


@pytest.mark.parametrize("rate_hz", [None, 16_000, 48_000])
def test_every_frame_is_there_at_its_time(rate_hz: int | None, ends: tuple[int, int], tmp_path: Path) -> None:
    reader, path = Reader(ends[0]), tmp_path / "x.mp4"
    with VideoWriter(OutputPipe(ends[1], Path("stdout")), H, W, rate_hz) as writer:
        for block in range(6):
            if rate_hz:
                writer.write_audio(np.zeros(rate_hz * 12 // 25, np.float32))
            writer.write(grays(12 * block, 12))
            if block == 0:
                time.sleep(0.5)
                path.write_bytes(reader.got)
                assert probe_video(path).frames >= 9  # of twelve, before there is a second block
    reader.thread.join()
    path.write_bytes(reader.got)
    info = probe_video(path)
    assert (info.frames, info.fps) == (72, 25)
    assert [round(float(frame.mean()) / 3) for frame in read_frames(path)] == list(range(72))


@pytest.mark.parametrize("standard", [False, True])
def test_a_reader_that_leaves(standard: bool, ends: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (25, H, W, 3), np.uint8)
    os.close(ends[0])
    kind, message = (OutputLost, "Broken pipe") if standard else (Unavailable, r"Broken pipe.*start its reader again")
    with pytest.raises(kind, match=message), VideoWriter(OutputPipe(ends[1], Path("stdout"), standard), H, W, None) as writer:
        for _ in range(40):
            writer.write(noise)


def test_a_reader_that_does_not_read_is_given_up_when_somebody_waits_for_the_end(ends: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (25, H, W, 3), np.uint8)
    output = OutputPipe(ends[1], Path("stdout"))
    stuck, began_s = threading.Timer(1.0, output.hurry), time.monotonic()
    stuck.start()
    with pytest.raises(Unavailable, match="nobody reads it"), VideoWriter(output, H, W, 16_000) as writer:
        for _ in range(40):
            writer.write_audio(np.zeros(25 * SAMPLES_PER_FRAME, np.float32))
            writer.write(noise)
    assert time.monotonic() - began_s < 10.0
    os.close(ends[0])
