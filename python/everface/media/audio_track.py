"""The audio track of a video that is being written: resampled, held back until the video has come as far, and encoded as AAC."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soxr
from av.container import OutputContainer

from everface.core.errors import BadInput
from everface.media.decoding.decoder import RATES

BIT_RATE = 192_000  # bits per second
ENCODED_RATES = (44_100, 48_000)  # Hz, kept; others become the last: an AAC frame of 1024 samples must be shorter than 40 ms
MAX_SKEW_S = 30  # audio may run ahead of the video, or behind, by this much; it bounds what waits in memory


def check_format(rate_hz: int, channels: int) -> None:
    """Raise BadInput for audio that cannot be written."""
    if not RATES[0] <= rate_hz <= RATES[1]:
        raise BadInput(f"an audio rate of {rate_hz} Hz cannot be written: use {RATES[0]} to {RATES[1]} Hz")
    if channels not in (1, 2):
        raise BadInput(f"{channels} audio channels cannot be written: mix them down to 1 or 2")


class AudioTrack:
    """Audio of `rate_hz` with 1 or 2 channels in `container`, `fps` video frames per second beside it. Not thread-safe."""

    def __init__(self, container: OutputContainer, rate_hz: int, channels: int, fps: int) -> None:
        self._container, self._fps = container, fps
        self._rate_hz = rate_hz if rate_hz in ENCODED_RATES else ENCODED_RATES[-1]
        self._layout, self._channels = ("mono", "stereo")[channels - 1], channels
        self._stream: Any = container.add_stream("aac", rate=self._rate_hz, layout=self._layout)
        self._stream.bit_rate = BIT_RATE
        self._resampler: soxr.ResampleStream | None = None
        if self._rate_hz != rate_hz:
            self._resampler = soxr.ResampleStream(rate_hz, self._rate_hz, channels, dtype="float32")
        self._received = 0  # samples, at the encoded rate
        self._encoded = 0  # samples given to the encoder
        self._waiting: deque[np.ndarray] = deque()  # [S, C], ahead of the video

    def ahead_s(self, frames: int) -> float:
        """Seconds by which the audio received is ahead of so many video frames."""
        return self._received / self._rate_hz - frames / self._fps

    def add(self, audio: np.ndarray, frames: int) -> None:
        """Take audio, float32 [S] or [S, channels]; it waits for the video, of which `frames` are written. Raises BadInput."""
        audio_SC = np.asarray(audio, dtype=np.float32)
        audio_SC = audio_SC[:, None] if audio_SC.ndim == 1 else audio_SC
        if audio_SC.ndim != 2 or audio_SC.shape[1] != self._channels:
            raise BadInput(f"audio of shape {list(np.shape(audio))} does not fit this video: pass [S, {self._channels}]")
        if not np.isfinite(audio_SC).all():
            raise BadInput(f"the audio has a sample that is not finite after {self._received / self._rate_hz:.2f} s: repair it")
        if self.ahead_s(frames) > MAX_SKEW_S:
            raise BadInput(f"the audio is {MAX_SKEW_S} s ahead of the video: write them alternately")
        if self._resampler is not None:
            audio_SC = self._resampler.resample_chunk(np.ascontiguousarray(audio_SC))
        self._queue(audio_SC)

    def encode(self, frames: int) -> None:
        """Encode what waits, up to the end of the first `frames` video frames."""
        while self._waiting and (room := self._missing(frames)) > 0:
            audio_SC = self._waiting.popleft()
            if len(audio_SC) > room:
                self._waiting.appendleft(audio_SC[room:])
            chunk_CS = np.ascontiguousarray(audio_SC[:room].T)
            frame = av.AudioFrame.from_ndarray(chunk_CS, "fltp", self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate_hz, self._encoded, Fraction(1, self._rate_hz)
            self._encoded += chunk_CS.shape[1]
            self._container.mux(self._stream.encode(frame))

    def finish(self, frames: int) -> None:
        """Encode the rest up to `frames` video frames: missing audio becomes silence, surplus audio is dropped."""
        if self._resampler is not None:
            self._queue(self._resampler.resample_chunk(np.zeros((0, self._channels), np.float32), last=True))
        self.encode(frames)
        while (missing := self._missing(frames)) > 0:  # second by second: the silence may be long
            self._queue(np.zeros((min(missing, self._rate_hz), self._channels), np.float32))
            self.encode(frames)
        self._container.mux(self._stream.encode(None))

    def clear(self) -> None:
        """Drop what waits."""
        self._waiting.clear()

    def _missing(self, frames: int) -> int:
        return frames * self._rate_hz // self._fps - self._encoded

    def _queue(self, audio_SC: np.ndarray) -> None:
        self._received += len(audio_SC)
        if len(audio_SC):
            self._waiting.append(audio_SC.clip(-1.0, 1.0))
