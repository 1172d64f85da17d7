"""Decodes the audio stream of an open container into float32 chunks, and finds damage in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from everface.core.errors import BadInput
from everface.core.log import log

MAX_GAP_S = 0.1  # a longer gap between two decoded frames means that audio is missing
RATES = (1_000, 768_000)  # Hz


def decode_audio(container: InputContainer, path: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Chunks of the first audio stream as (float32 [S, C], rate).

    A packet that cannot be decoded, or a gap in time, is damage: BadInput says where. Only the last packet may fail, as in a file
    that was cut short.
    """
    stream = container.streams.audio[0]
    end_s, failed = 0.0, False  # end of the decoded audio; whether a packet after it failed

    def refuse() -> NoReturn:
        raise BadInput(f"the audio file {path} is damaged at {end_s:.2f} s: repair or convert it first") from None

    packets = container.demux(stream)
    first_s: float | None = None
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            break
        except (FFmpegError, OSError):
            if failed:
                refuse()
            failed = True
            continue
        for frame in frames:
            if failed or frame.pts is None or frame.time_base is None:
                refuse()
            rate = frame.sample_rate
            if not RATES[0] <= rate <= RATES[1]:
                raise BadInput(f"{path} has a sample rate of {rate} Hz, outside {RATES[0]} to {RATES[1]} Hz: convert it first")
            start_s = float(frame.pts * frame.time_base)
            first_s = start_s if first_s is None else first_s
            if start_s - first_s - end_s > MAX_GAP_S:
                refuse()
            end_s = start_s - first_s + frame.samples / rate
            yield _to_float(frame), rate
    if failed:
        log.warning("%s was cut short: its audio ends at %.2f s", path, end_s)


def _to_float(frame: av.AudioFrame) -> np.ndarray:
    """Convert samples of any ffmpeg format to float32 [S, C], full scale 1."""
    x = frame.to_ndarray()  # planar [C, S]; packed [1, S * C]
    x_SC = x.T if frame.format.is_planar else x.reshape(-1, frame.layout.nb_channels)
    if x_SC.dtype == np.uint8:
        return (x_SC.astype(np.float32) - 128) / 128
    if np.issubdtype(x_SC.dtype, np.integer):
        return x_SC.astype(np.float32) / 2.0 ** (x_SC.dtype.itemsize * 8 - 1)
    return x_SC.astype(np.float32)
