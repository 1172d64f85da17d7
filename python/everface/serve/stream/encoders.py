"""Turns a live session's frames into messages: one endless fragmented MP4, or a JPEG and PCM for each frame. Not thread-safe."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image

from everface.live.events import AudioFrame, VideoFrame
from everface.media.audio_track import AudioTrack
from everface.serve.stream.messages import HEADER, HELD, IDLE, JPEG, PCM

BT709 = 1
QUALITY = 88  # of a JPEG
# A fragment for every frame, once the next one is there: with frag_every_frame the muxer writes durations of 0, which browsers take for gaps.
# The moov box waits for the first frames: it holds the edit list that hides the AAC encoder's priming.
# Without skip_trailer the muxer keeps 120 bytes a frame until the end, for an index of all fragments.
MP4_OPTIONS = {"movflags": "empty_moov+delay_moov+default_base_moof+skip_trailer", "frag_duration": "1", "flush_packets": "1"}
H264_OPTIONS = {"preset": "superfast", "tune": "zerolatency", "crf": "20", "bf": "0"}


class MediaEncoder(Protocol):
    """`media_s`: length of what was encoded so far. `open` comes first and returns the MIME type."""

    @property
    def media_s(self) -> float: ...
    def open(self, height: int, width: int) -> str: ...
    def encode(self, frame: VideoFrame | AudioFrame) -> list[bytes]: ...
    def close(self) -> list[bytes]: ...  # what is left


class JpegEncoder:
    """Each message: HEADER, then a JPEG, or PCM of the encoding that the client sends."""

    def __init__(self, channels: int, dtype: str, fps: int) -> None:
        self.media_s, self._frame_s = 0.0, 1 / fps
        self._channels, self._dtype = channels, np.dtype(dtype)

    def open(self, height: int, width: int) -> str:
        return "image/jpeg"

    def encode(self, frame: VideoFrame | AudioFrame) -> list[bytes]:
        if isinstance(frame, AudioFrame):
            samples = _channels(_as(frame.samples_SC, self._dtype), self._channels)
            return [HEADER.pack(PCM, 0, self._channels, frame.rate_hz, frame.pts) + samples.tobytes()]
        self.media_s += self._frame_s
        file = io.BytesIO()
        Image.fromarray(frame.image_HW3).save(file, "JPEG", quality=QUALITY)
        flags = IDLE * frame.idle | HELD * frame.held
        return [HEADER.pack(JPEG, flags, 0, 0, frame.pts) + file.getvalue()]

    def close(self) -> list[bytes]:
        return []


class Mp4Encoder:
    """H.264 and AAC. Its time is its own: it goes on without a hole over interruptions, held and dropped frames, as a player needs it."""

    def __init__(self, rate_hz: int, channels: int, fps: int) -> None:
        self._rate_hz, self._channels, self._fps = rate_hz, channels, fps
        self._silence = np.zeros((-(-rate_hz // fps), channels), np.float32)
        self._pieces = _Pieces()
        self._frames = 0
        self._has_audio = True  # the last video frame has its audio
        self._container: Any = None

    def open(self, height: int, width: int) -> str:
        self._container = av.open(self._pieces, "w", format="mp4", options=MP4_OPTIONS)
        self._video = self._container.add_stream("libx264", rate=self._fps, options=H264_OPTIONS)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context = self._video.codec_context
        context.gop_size = self._fps
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1  # limited
        self._reformatter = VideoReformatter()
        self._audio = AudioTrack(self._container, self._rate_hz, self._channels, self._fps)
        context.open()
        profile = bytes(context.extradata or b"").partition(b"\x00\x00\x01\x67")[2][:3]
        return f'video/mp4; codecs="avc1.{profile.hex() or "64001f"}, mp4a.40.2"'

    @property
    def media_s(self) -> float:
        return self._frames / self._fps

    def encode(self, frame: VideoFrame | AudioFrame) -> list[bytes]:
        if isinstance(frame, AudioFrame):
            if not self._has_audio:  # else its video frame was dropped: a slow reader
                self._add_audio(_channels(_as(frame.samples_SC, np.dtype(np.float32)), self._channels))
        else:
            if not self._has_audio:
                self._add_audio(self._silence)
            self._has_audio = False
            raw = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.image_HW3), "rgb24")
            image = self._reformatter.reformat(raw, format="yuv420p", dst_colorspace=Colorspace.ITU709)
            image.pts, image.time_base = self._frames, Fraction(1, self._fps)
            self._frames += 1
            self._container.mux(self._video.encode(image))
        return self._pieces.take()

    def close(self) -> list[bytes]:
        if self._container is not None:
            self._audio.finish(self._frames)
            self._container.mux(self._video.encode(None))
            self._container.close()
            self._container = None
        return self._pieces.take()

    def _add_audio(self, samples_SC: np.ndarray) -> None:
        self._audio.add(samples_SC, self._frames)
        self._audio.encode(self._frames)
        self._has_audio = True


class _Pieces:
    """The file that the muxer writes to."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> list[bytes]:
        written, self._written = bytes(self._written), bytearray()
        return [written] if written else []


def _as(samples_SC: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """int16 or float32 as the other."""
    if samples_SC.dtype == dtype:
        return samples_SC
    if dtype == np.int16:
        return (samples_SC * 32767).clip(-32768, 32767).astype(np.int16)
    return samples_SC.astype(np.float32) / 32768


def _channels(samples_SC: np.ndarray, channels: int) -> np.ndarray:
    return samples_SC if samples_SC.shape[1] == channels else np.repeat(samples_SC[:, :1], channels, 1)
