"""LiveKit's and Pipecat's adapters as faces of the session contract.

Each face is pushed to and read as a live session is, but all of it goes through the adapter. What the adapter gives out must be, one for
one and in order, what the live session gave to it; the frameworks' frames carry no position, so it is taken from there.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tests.live.faces import Until, live_in_process, read_sync

from everface.live.audio_input import as_array
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, VideoFrame
from everface.live.session import LiveSession


class Tap:
    """A live session that remembers what was read from it."""

    def __init__(self, session: LiveSession) -> None:
        self.session, self.log = session, deque[LiveEvent]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def read(self, timeout_s: float) -> LiveEvent | None:
        event = self.session.read(timeout_s)
        if event is not None:
            self.log.append(event)
        return event

    def next(self, kind: type[LiveEvent], content: bytes = b"") -> Any:
        """The event that the adapter turned into what it gave out. Only silence may be skipped."""
        while not isinstance(event := self.log.popleft(), kind):
            assert not isinstance(event, VideoFrame | LiveSegmentEnd), f"{event} was lost before a {kind.__name__}"
            assert not isinstance(event, AudioFrame) or not event.samples_SC.any(), "speech was lost"
        if isinstance(event, VideoFrame | AudioFrame):
            own = event.image_HW3 if isinstance(event, VideoFrame) else event.samples_SC
            assert own.tobytes() == content
        return event


class Face:
    """A live session's methods, by way of an adapter that lives in an event loop of another thread."""

    def __init__(self, session: LiveSession) -> None:
        self._session, self.tap = session._session, Tap(session)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.stats = session.stats

    @property
    def position(self) -> int:
        return self.tap.session.position

    def run(self, work: Coroutine[Any, Any, Any], timeout_s: float = 60.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def push_audio(self, samples: Any, rate_hz: int = 16_000, *, channels: int = 1) -> int:
        """In pieces of 20 ms, as voices come."""
        array = as_array(samples, channels)
        for piece in np.array_split(array, max(1, len(array) * 50 // rate_hz)):
            self.run(self.push(piece, rate_hz))
        return len(array)

    async def push(self, piece_SC: np.ndarray, rate_hz: int) -> None:
        raise NotImplementedError

    def read(self, timeout_s: float) -> LiveEvent | None:
        raise NotImplementedError

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5.0)


class LiveKitFace(Face):
    def __init__(self, session: LiveSession) -> None:
        from everface.integrations.livekit import AvatarVideoGenerator

        super().__init__(session)
        self.generator = AvatarVideoGenerator(self.tap)  # pyright: ignore[reportArgumentType]  it stands in for the session
        self.frames = aiter(self.generator)
        self.pending: asyncio.Task[Any] | None = None

    async def push(self, piece_SC: np.ndarray, rate_hz: int) -> None:
        from livekit import rtc

        self.generator._hz, self.generator._channels = rate_hz, piece_SC.shape[1]  # LiveKit resamples a voice to the track's rate
        await self.generator.push_audio(rtc.AudioFrame(piece_SC.tobytes(), rate_hz, piece_SC.shape[1], len(piece_SC)))

    def end_segment(self) -> None:
        from livekit.agents.voice.avatar import AudioSegmentEnd

        self.run(self.generator.push_audio(AudioSegmentEnd()))

    def interrupt(self) -> None:
        """LiveKit sends the end of a segment that it interrupted, too."""
        self.run(self.generator.clear_buffer())
        threading.Thread(target=self.end_segment, daemon=True).start()
        time.sleep(0.05)

    def close(self) -> None:
        self.tap.session.close()

    def read(self, timeout_s: float) -> LiveEvent | None:
        async def one() -> Any:
            self.pending = self.pending or asyncio.ensure_future(anext(self.frames, None))
            done, _ = await asyncio.wait([self.pending], timeout=timeout_s)
            if not done:
                return None
            out, self.pending = self.pending.result(), None
            return out

        from livekit import rtc
        from livekit.agents.voice.avatar import AudioSegmentEnd

        out = self.run(one())
        if isinstance(out, rtc.VideoFrame):
            return self.tap.next(VideoFrame, bytes(out.data))
        if isinstance(out, rtc.AudioFrame):
            samples_SC = np.frombuffer(out.data, np.int16).reshape(-1, out.num_channels)
            own = self.tap.next(AudioFrame, bytes(out.data))
            return AudioFrame(samples_SC, out.sample_rate, own.pts, own.time_s)
        return self.tap.next(LiveSegmentEnd) if isinstance(out, AudioSegmentEnd) else None


class PipecatFace(Face):
    def __init__(self, session: LiveSession) -> None:
        super().__init__(session)
        self.out: queue.Queue[LiveEvent] = queue.Queue()
        self.run(self.start())

    async def start(self) -> None:
        from tests.integrations.pipeline import started

        from everface.integrations.pipecat import EverfaceVideoService

        self.worker, self.running = await started(EverfaceVideoService(self.tap), self.sink)  # pyright: ignore[reportArgumentType]  it stands in for the session

    def sink(self, frame: Any) -> None:
        from pipecat.frames.frames import InterruptionFrame, OutputImageRawFrame, SpeechOutputAudioRawFrame, TTSStoppedFrame

        if isinstance(frame, OutputImageRawFrame):
            self.out.put(self.tap.next(VideoFrame, frame.image))
        elif isinstance(frame, SpeechOutputAudioRawFrame):
            own = self.tap.next(AudioFrame, frame.audio)
            samples_SC = np.frombuffer(frame.audio, np.int16).reshape(-1, frame.num_channels)
            self.out.put(AudioFrame(samples_SC, frame.sample_rate, own.pts, own.time_s))
        elif isinstance(frame, TTSStoppedFrame):
            self.out.put(self.tap.next(LiveSegmentEnd))
        elif isinstance(frame, InterruptionFrame):  # as a transport does: what waits is dropped
            self.out = queue.Queue()
            while not isinstance(event := self.tap.log.popleft(), LiveSegmentEnd):
                pass
            self.out.put(event)

    async def push(self, piece_SC: np.ndarray, rate_hz: int) -> None:
        from pipecat.frames.frames import TTSAudioRawFrame

        await self.worker.queue_frame(TTSAudioRawFrame(piece_SC.tobytes(), rate_hz, piece_SC.shape[1]))

    def end_segment(self) -> None:
        from pipecat.frames.frames import TTSStoppedFrame

        self.run(self.worker.queue_frame(TTSStoppedFrame()))

    def interrupt(self) -> None:
        from pipecat.frames.frames import InterruptionFrame

        self.run(self.worker.queue_frame(InterruptionFrame()))
        time.sleep(0.2)

    def read(self, timeout_s: float) -> LiveEvent | None:
        try:
            return self.out.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def stop(self) -> None:
        async def end() -> None:
            await self.worker.cancel()
            await self.running

        self.run(end())
        super().stop()


@contextmanager
def livekit(**options: Any) -> Iterator[LiveKitFace]:
    with live_in_process(**options) as session:
        face = LiveKitFace(session)
        try:
            yield face
        finally:
            face.stop()


@contextmanager
def pipecat(**options: Any) -> Iterator[PipecatFace]:
    """Always paced: a pipeline takes all that comes, so it has no pace of its own."""
    with live_in_process(**{**options, "paced": True}) as session:
        face = PipecatFace(session)
        try:
            yield face
        finally:
            face.stop()


def read(session: Any, until: Until, timeout_s: float = 60.0) -> list[LiveEvent]:
    return read_sync(session, until, timeout_s)
