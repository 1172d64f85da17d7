"""Reads a video as a player would show it: frames at 25 per second and audio at 16 kHz, both as streams from the first frame on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import av
import torch
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from everface.core.config import FPS, SAMPLE_RATE
from everface.core.errors import BadInput
from everface.media.container import demux, open_media
from everface.media.image import fit_image

TOLERANCE_S = 1e-3  # a frame that is late by no more than this is on time


def first_time_s(path: Path, kind: str) -> float:
    """Time stamp of the first frame of this kind, "video" or "audio". Raises BadInput where there is none."""
    with open_media(path, kind) as container:
        streams = container.streams.video if kind == "video" else container.streams.audio
        if not streams:
            raise BadInput(f"{path} holds no {kind}")
        for frame in _decoded(path, container, streams[0]):
            return float(frame.time or 0.0)
    raise BadInput(f"{path} holds no {kind} that can be decoded")


def read_frames(path: Path, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """[3, H, W] in -1..1, 25 per second, cropped from the middle to `size`: at each moment the frame that a player would show."""
    reformatter = VideoReformatter()

    def fitted(frame: av.VideoFrame) -> torch.Tensor:
        return fit_image(reformatter.reformat(frame, format="rgb24").to_ndarray(), size)

    with open_media(path, "video") as container:
        number, held, zero_s = 0, None, None
        for frame in _decoded(path, container, container.streams.video[0]):
            now_s = float(frame.time or 0.0)
            zero_s = now_s if zero_s is None else zero_s
            if held is not None and number / FPS < now_s - zero_s - TOLERANCE_S:
                image_3HW = fitted(held)
                while number / FPS < now_s - zero_s - TOLERANCE_S:
                    yield image_3HW
                    number += 1
            held = frame
        if held is not None and number / FPS < float(held.time or 0.0) - (zero_s or 0.0) + 1 / FPS - TOLERANCE_S:
            yield fitted(held)


def read_audio(path: Path, zero_s: float) -> Iterator[torch.Tensor]:
    """Mono pieces at 16 kHz. The first sample is at `zero_s` of the file, which must hold audio (`first_time_s`).

    The reader in `everface.media` refuses files with video, because a viewer passes audio files.
    """
    resampler, surplus = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE), None
    with open_media(path, "audio") as container:
        for frame in chain(_decoded(path, container, container.streams.audio[0]), [None]):
            if surplus is None and frame is not None:  # samples before zero_s, to be dropped
                surplus = round((zero_s - float(frame.time or 0.0)) * SAMPLE_RATE)
                if surplus < 0:
                    yield torch.zeros(-surplus)
            for out in resampler.resample(frame):
                piece_S = torch.from_numpy(out.to_ndarray()[0]).clone()
                cut = min(max(surplus or 0, 0), len(piece_S))
                surplus = (surplus or 0) - cut
                yield piece_S[cut:]


def _decoded(path: Path, container: InputContainer, stream: AudioStream | VideoStream) -> Iterator[Any]:
    try:
        for packet in demux(container, stream):
            yield from packet.decode()
    except FFmpegError as error:
        raise BadInput(f"{path} is damaged: {error.strerror}") from None
