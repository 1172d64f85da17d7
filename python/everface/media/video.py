"""Reads video files: their properties and their frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from everface.core.errors import BadInput
from everface.media.container import check_codec, demux, open_media


@dataclass(frozen=True)
class VideoInfo:
    """What a video file contains, counted packet by packet. `audio_duration_s` is without the encoder's priming samples."""

    codec: str
    width: int
    height: int
    fps: float
    frames: int
    duration_s: float
    audio_codec: str | None = None
    audio_rate_hz: int | None = None
    audio_channels: int | None = None
    audio_duration_s: float | None = None


@contextmanager
def _open_video(path: str | Path) -> Iterator[InputContainer]:
    with open_media(path, "video") as container:
        if not container.streams.video:
            raise BadInput(f"{path} contains no video: pass a video file")
        for stream in (container.streams.video[0], *container.streams.audio[:1]):
            check_codec(stream, path)
        yield container


def probe_video(path: str | Path) -> VideoInfo:
    """Count a video file's packets, without decoding them. Raises BadInput if it contains no video or is damaged."""
    with _open_video(path) as container:
        video, audio = container.streams.video[0], next(iter(container.streams.audio), None)
        frames, start_s, end_s, audio_end_s = 0, None, 0.0, 0.0
        try:
            for packet in demux(container, *([video, audio] if audio else [video])):
                if packet.pts is None or packet.time_base is None or packet.size == 0:
                    continue
                pts_s = float(packet.pts * packet.time_base)
                until_s = pts_s + float((packet.duration or 0) * packet.time_base)
                if packet.stream is video:
                    frames, start_s, end_s = frames + 1, min(pts_s, pts_s if start_s is None else start_s), max(end_s, until_s)
                else:
                    audio_end_s = max(audio_end_s, until_s)
        except FFmpegError as error:
            raise BadInput(f"the video file {path} is damaged after {end_s:.2f} s ({error.strerror}): convert it first") from None
        context, duration_s = video.codec_context, end_s - (start_s or 0.0)
        info = (context.name, context.width, context.height, frames / duration_s if duration_s else 0.0, frames, duration_s)
        if audio is None:
            return VideoInfo(*info)
        return VideoInfo(
            *info, audio.codec_context.name, audio.codec_context.sample_rate, audio.codec_context.channels, audio_end_s
        )


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video file in order, uint8 RGB [H, W, 3]. Raises BadInput if it contains no video or is damaged."""
    with _open_video(path) as container:
        reformatter, count = VideoReformatter(), 0
        try:
            for packet in demux(container, container.streams.video[0]):
                for frame in packet.decode():
                    yield reformatter.reformat(frame, format="rgb24").to_ndarray()
                    count += 1
        except FFmpegError as error:
            raise BadInput(f"the video file {path} is damaged after frame {count} ({error.strerror}): convert it first") from None
