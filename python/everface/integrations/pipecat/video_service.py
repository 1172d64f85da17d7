"""A Pipecat service between text-to-speech and the transport: speech in, frames and the same speech out, at the pace of the clock.

Frames that follow speech (texts, the end of the speech, the end of the pipeline) wait here until that speech was shown. So the
assistant's context, downstream, holds what was said and no more; an interruption drops the frames that wait, with their speech.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputImageRawFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    SystemFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings

from everface.core.config import FPS
from everface.core.errors import EverfaceError
from everface.integrations.event_loop import POLL_S, push_all
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, VideoFrame
from everface.live.session import LiveSession

DRAIN_S = 5.0  # beyond the speech that is left, at the end of the pipeline
SAME_S = 1e-4  # sums of seconds that differ by less are the same


def video_params(width: int, height: int, fps: int = FPS) -> dict[str, Any]:
    """What TransportParams needs to show frames of this size, in pixels, as they come. `fps`: `Avatar.format.fps`, by default Live Avatar's."""
    size = {"video_out_width": width, "video_out_height": height}
    return {"video_out_enabled": True, "video_out_is_live": True, "video_out_framerate": fps, **size}


class EverfaceVideoService(AIService):
    """Animates one open live session, which it owns: the session is closed with the pipeline. A model that listens hears the user's audio, if the
    services before this one pass it on.

    The transport needs `**video_params(width, height)`. When the session fails, an ErrorFrame goes upstream and speech passes through
    unseen, so the bot keeps its voice.
    """

    def __init__(self, session: LiveSession) -> None:
        super().__init__(settings=ServiceSettings(model=None))
        self._session = session
        self._reader: asyncio.Task[None] | None = None
        self._held: deque[tuple[float, Frame]] = deque()  # (seconds of speech before it, frame)
        self._pushed_s = self._shown_s = self._ended_s = 0.0  # speech accepted; shown; shown in live segments that are over
        self._turn = 0
        self._failed = False
        self._order = asyncio.Lock()  # one frame at a time, and none of the past behind an interruption

    # Pipecat's life cycle

    async def stop(self, frame: EndFrame) -> None:
        """The end of the pipeline comes when all speech was shown."""
        await super().stop(frame)
        if not self._failed and not self._session.closed:
            self._session.end_segment()
            end_s = time.monotonic() + self._pushed_s - self._shown_s + DRAIN_S
            while (self._held or self._shown_s + SAME_S < self._pushed_s) and time.monotonic() < end_s and not self._failed:
                await asyncio.sleep(POLL_S)
        await self._close()
        await self._release()

    async def cancel(self, frame: CancelFrame) -> None:
        await super().cancel(frame)
        await self._close()

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._close()

    async def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await self.cancel_task(reader)
        await asyncio.to_thread(self._session.close)

    # in

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self.push_frame(frame, direction)
            self._reader = self._reader or self.create_task(self._read())
        elif self._failed:
            await self.push_frame(frame, direction)
        else:
            try:
                await self._process(frame, direction)
            except EverfaceError as error:
                await self._fail(error)
                await self.push_frame(frame, direction)

    async def _process(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, InterruptionFrame):
            await self._interrupt(frame, direction)
        elif isinstance(frame, InputAudioRawFrame):
            if self._session.format.user_audio:
                self._session.push_user_audio(frame.audio, frame.sample_rate, channels=frame.num_channels)
            await self.push_frame(frame, direction)
        elif direction == FrameDirection.UPSTREAM or isinstance(frame, SystemFrame | EndFrame):
            await self.push_frame(frame, direction)
        elif isinstance(frame, TTSAudioRawFrame):
            await self._push_audio(frame)
        else:
            if isinstance(frame, TTSStoppedFrame):
                self._session.end_segment()
            self._held.append((self._pushed_s, frame))

    async def _push_audio(self, frame: TTSAudioRawFrame) -> None:
        turn, rate_hz = self._turn, frame.sample_rate

        def took(samples: int) -> None:
            self._pushed_s += samples / rate_hz

        await push_all(self._session, frame.audio, rate_hz, frame.num_channels, took, lambda: self._turn != turn)

    async def _interrupt(self, frame: InterruptionFrame, direction: FrameDirection) -> None:
        async with self._order:
            self._turn += 1
            self._session.interrupt()
            while self._session.read(0.0) is not None:  # the ends of segments that are no longer counted
                pass
            self._pushed_s = self._shown_s = self._ended_s = 0.0
            self._held = deque((0.0, held) for _, held in self._held if not held.interruptible)
            await self.push_frame(frame, direction)

    # out

    async def _read(self) -> None:
        idle = True
        try:
            while not self._session.closed:
                async with self._order:
                    while self._held and self._held[0][0] <= self._shown_s + SAME_S:
                        await self.push_frame(self._held.popleft()[1])
                    event = self._session.read(0.0)
                    if isinstance(event, VideoFrame):
                        idle = event.idle
                    await self._give(event, idle)
                if event is None:
                    await asyncio.sleep(POLL_S)
        except EverfaceError as error:
            await self._fail(error)

    async def _give(self, event: LiveEvent | None, idle: bool) -> None:
        if isinstance(event, VideoFrame):
            height, width, _ = event.image_HW3.shape
            image = OutputImageRawFrame(image=event.image_HW3.tobytes(), size=(width, height), format="RGB")
            image.pts = round(1e9 * event.time_s)
            await self.push_frame(image)
        elif isinstance(event, AudioFrame) and (not idle or event.samples_SC.any()):
            samples, channels = event.samples_SC.shape
            self._shown_s = min(self._pushed_s, self._shown_s + samples / event.rate_hz)
            await self.push_frame(SpeechOutputAudioRawFrame(event.samples_SC.tobytes(), event.rate_hz, channels))
        elif isinstance(event, LiveSegmentEnd) and not event.interrupted:
            self._ended_s += event.pushed_s
            self._shown_s = self._ended_s

    async def _fail(self, error: EverfaceError) -> None:
        """Go on without a face: what waits, and all that comes, passes."""
        if not self._failed:
            self._failed = True
            await self.push_error(f"the avatar stopped: {error}", exception=error)
            await self._release()

    async def _release(self) -> None:
        while self._held:
            await self.push_frame(self._held.popleft()[1])
