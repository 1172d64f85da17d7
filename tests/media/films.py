"""Frames and audio whose place in time can be found again in a video: one white frame, one beep."""

from pathlib import Path

import av
import numpy as np

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
