"""LiveKit's VideoGenerator over a live session.

Segments here are LiveKit's: a live session may end one early, when a voice pauses, and go on with another. So what was pushed of each
segment is counted, and its end goes out when the live session has accounted for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator

from everface.core.errors import BadInput, Unavailable
from everface.integrations.event_loop import POLL_S, push_all, read_event
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, VideoFrame
from everface.live.session import LiveSession

READY_S = 60.0  # for the first frame of a session
CLEAR_S = 0.5  # most that an interruption waits for its consequences to be read


@dataclass(eq=False)
class _Segment:
    turn: int  # of its last audio
    waiting: int = 0  # samples that the live session has not accounted for
    finished: asyncio.Event = field(default_factory=asyncio.Event)  # its end was read


class AvatarVideoGenerator(VideoGenerator):
    """Audio frames in; video frames, the same audio frame by frame, and one AudioSegmentEnd a segment out.

    Use it with an AvatarRunner: `options = await generator.wait_ready()` first. Idle frames come without audio, so that LiveKit counts the
    speech alone. audio_hz, audio_channels: what every pushed frame has to have, since LiveKit's track has one rate. For one event loop.
    """

    def __init__(self, session: LiveSession, *, audio_hz: int = 24_000, audio_channels: int = 1) -> None:
        self._session, self._hz, self._channels = session, audio_hz, audio_channels
        self._turn = 0  # interruptions so far
        self._open = _Segment(0)  # the one that is pushed to
        self._ended: deque[_Segment] = deque()  # ended, but not out yet
        self._peeked: deque[LiveEvent] = deque()
        self._reading = False  # the reader works on what it was given last
        self._given = 0

    async def wait_ready(self, timeout_s: float = READY_S) -> AvatarOptions:
        """Wait for the first frame, which is kept, and return the options for an AvatarRunner. Raises Unavailable, or what ended the session."""
        end_s = time.monotonic() + timeout_s
        while not self._session.closed and time.monotonic() < end_s:  # what a closed one left is of no use
            if frames := [event for event in self._peeked if isinstance(event, VideoFrame)]:
                height, width, _ = frames[0].image_HW3.shape
                return AvatarOptions(width, height, 1 / self._session.frame_s, self._hz, self._channels)
            event = await read_event(self._session, 0.1)
            if event is not None:
                self._peeked.append(event)
        raise Unavailable(f"the live session gave no frame within {timeout_s:g} s: open it with idle=True, and keep it open")

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Waits where the session's buffer is full. Raises BadInput for another rate or number of channels, Unavailable."""
        if isinstance(frame, AudioSegmentEnd):
            await self._end()
            return
        if (frame.sample_rate, frame.num_channels) != (self._hz, self._channels):
            raise BadInput(
                f"audio at {frame.sample_rate} Hz in {frame.num_channels} channels came, but the avatar's track has {self._hz} Hz in "
                f"{self._channels}: give AvatarVideoGenerator this audio_hz and audio_channels"
            )
        turn, segment = self._turn, self._open
        segment.turn = turn

        def took(samples: int) -> None:
            segment.waiting += samples

        pcm = bytes(frame.data)[: 2 * frame.samples_per_channel * self._channels]
        await push_all(self._session, pcm, self._hz, self._channels, took, lambda: self._turn != turn)

    async def _end(self) -> None:
        self._session.end_segment()
        segment, self._open = self._open, _Segment(self._turn)
        self._ended.append(segment)
        if segment.turn != self._turn:  # LiveKit takes an end for that of whatever plays: let it read this one before the next audio
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(segment.finished.wait(), CLEAR_S)

    async def clear_buffer(self) -> None:
        """An interruption: nothing older comes but the frame that is being read. Returns when the ends of what it dropped were read."""
        self._turn += 1
        self._session.interrupt()
        given, end_s = self._given, time.monotonic() + CLEAR_S
        while (self._ended or (self._reading and self._given == given)) and time.monotonic() < end_s:
            await asyncio.sleep(POLL_S)

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        idle = True
        while True:
            while self._ended and not self._ended[0].waiting:
                self._given, self._reading = self._given + 1, True
                yield AudioSegmentEnd()
                self._ended.popleft().finished.set()
                self._reading = False
            event = self._peeked.popleft() if self._peeked else await read_event(self._session, 10 * POLL_S)
            if event is None and self._session.closed:
                return
            if isinstance(event, LiveSegmentEnd):
                self._account(round(event.pushed_s * self._hz))
            if isinstance(event, VideoFrame):
                idle = event.idle
            out = _frame(event, idle)
            if out is not None:
                self._given, self._reading = self._given + 1, True
                yield out
                self._reading = False

    def _account(self, samples: int) -> None:
        """A live segment is over; it never reaches into the next of ours."""
        segment = next((s for s in (*self._ended, self._open) if s.waiting), self._open)
        segment.waiting = max(0, segment.waiting - samples)


def _frame(event: LiveEvent | None, idle: bool) -> rtc.VideoFrame | rtc.AudioFrame | None:
    """None for what LiveKit has no use for. An idle frame has audio only where the speech begins within it."""
    if isinstance(event, VideoFrame):
        height, width, _ = event.image_HW3.shape
        return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, event.image_HW3.tobytes())
    if isinstance(event, AudioFrame) and (not idle or event.samples_SC.any()):
        samples, channels = event.samples_SC.shape
        return rtc.AudioFrame(event.samples_SC.tobytes(), event.rate_hz, channels, samples)
    return None
