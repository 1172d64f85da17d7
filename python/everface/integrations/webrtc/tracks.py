"""The two tracks of a live session, fed by one reader: video at the session's pace, and its audio as 48 kHz mono."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from everface.integrations.event_loop import read_event
from everface.live.events import AudioFrame, VideoFrame
from everface.live.session import LiveSession

AUDIO_HZ = 48_000
VIDEO_HZ = 90_000
QUEUED = 3  # frames of a track that wait for its encoder: each is a frame's time of latency; beyond it the oldest are dropped


class SessionTrack(MediaStreamTrack):
    """Gives out what the feed puts in, and ends with it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.queue = kind, asyncio.Queue[Any](QUEUED)

    def put(self, frame: Any) -> None:
        if self.queue.full():
            self.queue.get_nowait()
        self.queue.put_nowait(frame)

    async def recv(self) -> Any:
        frame = await self.queue.get() if self.readyState == "live" else None
        if frame is None:
            self.stop()
            raise MediaStreamError
        return frame


class SessionFeed:
    """Reads a live session into a video and an audio track, until the session is closed or the feed is cancelled."""

    def __init__(self, session: LiveSession) -> None:
        self.session, self.video, self.audio = session, SessionTrack("video"), SessionTrack("audio")
        self._fps, self._frames = session.format.fps, 0
        self._samples = 0
        self._resampler: tuple[Any, av.AudioResampler] | None = None

    async def run(self) -> None:
        try:
            while not self.session.closed:
                event = await read_event(self.session, 0.1)
                if isinstance(event, VideoFrame):
                    self._put_video(event)
                elif isinstance(event, AudioFrame):
                    self._put_audio(event)
        finally:
            self.video.put(None)
            self.audio.put(None)

    def _put_video(self, event: VideoFrame) -> None:
        frame = av.VideoFrame.from_ndarray(event.image_HW3, format="rgb24")
        frame.pts, frame.time_base = self._frames * VIDEO_HZ // self._fps, Fraction(1, VIDEO_HZ)
        self._frames += 1
        behind = (self._frames - 1) * AUDIO_HZ // self._fps - self._samples
        if behind > AUDIO_HZ // self._fps // 2:  # held frames have no audio, but its time goes on
            self._samples += behind
        self.video.put(frame)

    def _put_audio(self, event: AudioFrame) -> None:
        samples_SC = event.samples_SC
        if samples_SC.dtype != np.int16:
            samples_SC = (np.clip(samples_SC, -1, 1) * 32767).astype(np.int16)
        kind = (event.rate_hz, samples_SC.shape[1])
        if self._resampler is None or self._resampler[0] != kind:  # another segment, or idle silence, may have another rate
            self._resampler = kind, av.AudioResampler("s16", "mono", AUDIO_HZ)
        frame = av.AudioFrame.from_ndarray(samples_SC.reshape(1, -1), "s16", "mono" if kind[1] == 1 else "stereo")
        frame.sample_rate = event.rate_hz
        for part in self._resampler[1].resample(frame):
            part.pts, part.time_base = self._samples, Fraction(1, AUDIO_HZ)
            self._samples += part.samples
            self.audio.put(part)
