"""The session contract as a state machine for hypothesis: what callers do in any order, and a model of what must come back.

A stage is lost by a pipeline in this process that forgets everything, as one of processes does when one of them is killed.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.runtime import toy

from everface.core.errors import BadInput, Unavailable
from everface.live.events import AudioFrame, LiveSegmentEnd, VideoFrame
from everface.live.session import LiveSession
from everface.runtime.events import Recovered, Recovering
from everface.runtime.messages import Cancel, Message, Reply, reply_of
from everface.runtime.pipeline import Pipeline, PipelineLost
from everface.runtime.scheduler import Scheduler
from everface.runtime.stage import Stage

FRAME, BLOCK, LATE_S = 640, 7680, 60.0
RATES = (8_000, 16_000, 24_000, 48_000)
QUEUE_S = 0.4  # of video that may wait for the reader


class LosablePipeline(Pipeline):
    """Runs a block when its reply is asked for. `lose` is the death of its process: from any thread."""

    def __init__(self) -> None:
        super().__init__(depth=3)
        self.stage = Stage({role.name: toy.Toy.build_role(role.name, toy.SPEC) for role in toy.roles_of(2)})
        self.messages: deque[Message] = deque()
        self.lost = False

    def lose(self) -> None:
        self.lost = True
        self.signal.set()

    def recover(self) -> list[str]:
        self.messages.clear()
        self.stage.reset()
        self.in_flight, self.lost = 0, False
        return ["all"]

    def close(self) -> None:
        self.messages.clear()

    def _send(self, message: Message) -> None:
        self._check()
        if isinstance(message, Cancel):
            self.stage.on_cancel(message)
        else:
            self.messages.append(message)

    def _receive(self) -> Reply | None:
        self._check()
        return reply_of(self.stage.run(self.messages.popleft())) if self.messages else None

    def _check(self) -> None:
        if self.lost:
            raise PipelineLost("a stage was killed")


@dataclass(eq=False)
class Spoken:
    """One segment, as its caller knows it."""

    rate_hz: int
    pieces: list[np.ndarray] = field(default_factory=list)
    read: list[np.ndarray] = field(default_factory=list)
    ended: bool = False  # by the caller
    interrupted: bool = False
    end: LiveSegmentEnd | None = None

    @property
    def audio_S(self) -> np.ndarray:
        return np.concatenate(self.pieces)


class Contract(RuleBasedStateMachine):
    """Without a pace and without idle motion everything is determined: all audio comes back, sample by sample, with video that is contiguous within a segment."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = LosablePipeline()
        self.scheduler = Scheduler(self.pipeline, limit=1)
        self.opened = 0

    @initialize()
    def open(self) -> None:
        session = toy.open_at(self.scheduler, 4.0).wait_open(LATE_S)
        self.live = LiveSession(session, idle=False, paced=False, outbox_s=QUEUE_S)
        self.spoken: list[Spoken] = []  # of the session
        self.next_pts = self.begin = 0  # of the next video frame; of the turn
        self.video: VideoFrame | None = None  # its audio comes next
        self.recovering = False
        self.opened += 1

    @property
    def speaking(self) -> Spoken | None:
        return self.spoken[-1] if self.spoken and not (self.spoken[-1].ended or self.spoken[-1].interrupted) else None

    @rule(ms=st.integers(1, 1500), rate_hz=st.sampled_from(RATES), seed=st.integers(0, 2**32 - 1))
    def push(self, ms: int, rate_hz: int, seed: int) -> None:
        speaking = self.speaking
        rate_hz = speaking.rate_hz if speaking else rate_hz
        audio_S = np.random.default_rng(seed).integers(1, 20_000, ms * rate_hz // 1000).astype(np.int16)
        taken = self.live.push_audio(audio_S, rate_hz)
        assert 0 <= taken <= len(audio_S)
        if taken:
            if not speaking:
                speaking = Spoken(rate_hz)
                self.spoken.append(speaking)
            speaking.pieces.append(audio_S[:taken])

    @rule()
    def push_what_is_wrong(self) -> None:
        if self.speaking:
            other = next(rate for rate in RATES if rate != self.speaking.rate_hz)
            try:
                taken = self.live.push_audio(np.ones(100, np.int16), other)
            except BadInput:
                return
            raise AssertionError(f"{taken} samples of another rate were accepted")

    @rule()
    def end_segment(self) -> None:
        self.live.end_segment()
        if self.speaking:
            self.speaking.ended = True

    @rule()
    def interrupt(self) -> None:
        self.live.interrupt()
        for spoken in self.spoken:
            spoken.interrupted = spoken.interrupted or spoken.end is None  # or its end waits to be read
        self.next_pts, self.begin, self.video = -1, self.live.turn_begin, None

    @rule(bias=st.floats(-1, 1))
    def change(self, bias: float) -> None:
        self.live.change(bias=torch.full(toy.LATENT, bias))

    @rule()
    def lose_a_stage(self) -> None:
        self.pipeline.lose()

    @rule(most=st.integers(1, 60))
    def read(self, most: int) -> None:
        """As far as there is something: a reader that does not come is a slow one."""
        for _ in range(most):
            if not self._read(0.02):
                return

    @precondition(lambda self: self.opened < 4)
    @rule(drain=st.booleans())
    def close_and_open_another(self, drain: bool) -> None:
        if drain:
            self._finish()
        self.live.close()
        self.live.close()
        for refused in (lambda: self.live.push_audio(np.zeros(10, np.int16)), self.live.end_segment, self.live.interrupt):
            try:
                refused()
            except Unavailable:
                continue
            raise AssertionError("a closed session went on")
        while self._read(0.0):
            pass
        assert self.live.finished
        self.open()

    def teardown(self) -> None:
        try:
            if hasattr(self, "live"):
                self._finish()
                self.live.close()
        finally:
            self.scheduler.close()

    def _finish(self) -> None:
        """Everything that was pushed comes, and every segment has its one result."""
        self.end_segment()
        end_s = time.monotonic() + LATE_S
        while any(spoken.end is None for spoken in self.spoken):
            assert time.monotonic() < end_s, f"these have no end: {[s for s in self.spoken if s.end is None]}"
            self._read(0.1)
        assert self.live.stats().dropped_frames == 0 and self.live.stats().underruns == 0
        while self._read(0.0):  # Recovering and Recovered may be left, but no frame
            assert self.video is None

    def _read(self, timeout_s: float) -> bool:
        """Take one event and hold it against the model; False if there was none."""
        event = self.live.read(timeout_s)
        if isinstance(event, VideoFrame):
            assert self.video is None and not event.held and not event.idle
            fresh = not next(s for s in self.spoken if s.end is None and not s.interrupted).read
            gap = event.pts - self.next_pts if self.next_pts >= 0 else 0  # silence that filled up a block is not shown
            assert gap == 0 or (fresh and 0 < gap < BLOCK), f"a frame at {event.pts} came where {self.next_pts} was due"
            assert event.pts >= self.begin, "a frame of before the interruption"
            self.video, self.next_pts = event, event.pts + FRAME
        elif isinstance(event, AudioFrame):
            assert self.video is not None, f"audio at {event.pts} came without its frame"
            assert self.video.pts == event.pts, f"audio at {event.pts} came after the frame at {self.video.pts}"
            self.video = None
            self._place(event.samples_SC[:, 0], event.rate_hz)
        elif isinstance(event, LiveSegmentEnd):
            self._end(event)
        elif isinstance(event, Recovering):
            self.recovering = True
        elif isinstance(event, Recovered):
            assert self.recovering
            self.recovering = False
        else:
            assert event is None, event
        return event is not None

    def _place(self, samples_S: np.ndarray, rate_hz: int) -> None:
        """The audio of a frame: of the first segment that has no end yet, filled up with silence where it ends."""
        spoken = next(s for s in self.spoken if s.end is None and not s.interrupted)
        assert rate_hz == spoken.rate_hz
        at = sum(map(len, spoken.read))
        expected_S = spoken.audio_S[at : at + len(samples_S)]
        assert np.array_equal(samples_S[: len(expected_S)], expected_S) and not samples_S[len(expected_S) :].any()
        spoken.read.append(expected_S)

    def _end(self, end: LiveSegmentEnd) -> None:
        spoken = next(s for s in self.spoken if s.end is None)  # in order
        assert end.segment == self.spoken.index(spoken) + 1
        pushed_s, read_s = len(spoken.audio_S) / spoken.rate_hz, sum(map(len, spoken.read)) / spoken.rate_hz
        assert abs(end.pushed_s - pushed_s) < 1e-6
        assert abs(end.shown_s - read_s) < 1e-6
        assert end.interrupted == (spoken.interrupted and read_s < pushed_s) or (end.interrupted and not spoken.ended)
        assert end.interrupted or spoken.ended
        spoken.end = end
