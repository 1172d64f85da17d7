"""A live session: audio in at any rate, video frames with the caller's own audio out, at the pace of the clock.

With `idle`, the face goes on when there is no audio: the session pushes silence whenever the video would run out, so frames come at
an exact cadence from the first second, and speech follows idle motion without a jump, since both are one stream of the model.
Deadlines are wall time; positions are counts of samples, never times.

A paced session on a machine that is slower than real time goes down a ladder: first what `cheaper` asks of the model, level by level, then
each frame is shown for two, then for three. The caller's audio goes on at its own speed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.core.log import log
from everface.live.audio_input import Samples, StreamResampler, as_array
from everface.live.events import AudioFrame, LiveEvent, QualityChange, Underrun, VideoFrame
from everface.live.fade import Fade
from everface.live.iteration import EventIteration
from everface.live.ladder import Ladder, describe_level
from everface.live.lead import lead_s
from everface.live.model_feed import ModelFeed
from everface.live.playback import Playback, Segment
from everface.live.reader_queue import ReaderQueue
from everface.live.stats import LiveStats
from everface.runtime.events import SegmentEnd
from everface.runtime.exit_hook import close_at_exit
from everface.runtime.model import BlockFormat
from everface.runtime.session import CLOSED, Session
from everface.runtime.timeline import Timeline

STALL_S = 0.5  # without a push an open segment counts as paused: idle motion goes on
TICK_S = 0.005
FACTORS = (2, 3)  # of the ladder's last levels: output frames that one frame of the model's is shown for
STOP_S = 5.0  # for the thread to end: it never waits for long


class LiveSession(EventIteration):
    """Wraps an open runtime session, which it owns. Every method may be called from any thread.

    idle: the face goes on without audio. paced: frames are given out at the model's rate, else as fast as they are read. playback_hz: rate
    of the silence that comes with idle frames. outbox_s: most seconds of video that wait for a reader; beyond it the oldest are dropped.
    jitter_s: of finished video that may wait for its time. cheaper: what to pass to `Session.change` for full quality and for each level
    below it; empty where the model has none.
    """

    def __init__(
        self, session: Session, *, idle: bool = True, paced: bool = True, playback_hz: int = 24_000, outbox_s: float = 2.0,
        jitter_s: float = 1.0, cheaper: Sequence[dict[str, Any]] = (), now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._session, self._idle, self._paced, self._playback_hz, self._now = session, idle, paced, playback_hz, now
        self._format = session.format
        self._frame = self._format.samples_per_frame
        self.frame_s = self._frame / self._format.sample_rate
        self._out = ReaderQueue(2 * max(2, int(outbox_s / self.frame_s)), lossy=paced)  # video and audio frames
        self._playback = Playback(self._format.sample_rate)
        self._segment: Segment | None = None
        self._resampler: StreamResampler | None = None
        self._feed = ModelFeed(session, lambda begin, end: self._playback.within(begin, end) is not None)
        self._jitter_s, self._cheaper = jitter_s, tuple(cheaper) or ({},)
        self._ladder = Ladder(len(self._cheaper) + len(FACTORS), self._format.fps)
        self._level_from = 0  # position from which frames are made at the present level
        self._form: tuple[np.dtype, int] = (np.dtype(np.int16), 1)  # of the present segment: dtype and channels
        self._pad = False  # complete the last block with silence when all of it is pushed
        self._pushed_s = 0.0  # when audio came last
        self._ready: deque[tuple[int, np.ndarray, bool]] = deque()  # (pts, image, whether it is a repetition) that wait for their time
        self._last: np.ndarray | None = None
        self._fade = Fade()
        self._next_pts = 0
        self._due_s: float | None = None  # of the next frame
        self._short = 0  # frames held in the present underrun
        self._refilling = True  # until the first frame, of all or after an interruption: no machine has that at once, so it is no underrun
        self._count = dict.fromkeys(("frames", "idle", "held", "refill", "underruns", "levels", "repeated"), 0)
        self._failed: EverfaceError | None = None
        self._closed = False
        self._lock = threading.RLock()  # taken itself, not through the condition: see runtime/session.py
        self._changed = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name=f"everface live {session.id}", daemon=True)
        self._thread.start()
        self._forget = close_at_exit(self.close)

    # in

    def push_audio(self, samples: Samples, rate_hz: int = 16_000, *, channels: int = 1, timeout_s: float = 0.0) -> int:
        """Accept audio of the present segment; the first push after `end_segment` or `interrupt` opens one.

        samples: int16 or float32 in -1..1, [S] or [S, C], numpy or torch, or bytes of interleaved int16 in `channels`. rate_hz: 8,000 to
        192,000, the same within a segment, as are dtype and channels. Waits up to timeout_s seconds for room. Returns how many samples (per channel) it took, 0 when
        the buffer is full. Raises BadInput, Unavailable.
        """
        array = as_array(samples, channels)
        end_s = self._now() + timeout_s
        taken = 0
        while True:
            with self._lock:
                self._check_open()
                taken += self._accept(array[taken:], rate_hz)
                if taken == len(array) or self._now() >= end_s:
                    return taken
                self._changed.wait(min(0.02, max(0.0, end_s - self._now())))

    def push_user_audio(self, samples: Samples, rate_hz: int = 16_000, *, channels: int = 1) -> None:
        """What the person hears, such as a user's microphone: a model that listens (`format.user_audio`) nods and looks attentive. Not while a segment
        is shown: the person speaks then. samples: as for `push_audio`; of what waits for longer than user_audio.KEPT_S the oldest is dropped. Raises
        BadInput, also where the model does not listen."""
        array_SC = as_array(samples, channels)
        with self._lock:
            self._check_open()
            if self._feed.user is None:
                raise BadInput("these weights were not trained to listen: push what the person says itself, or use weights that listen")
            self._feed.user.push(array_SC, rate_hz)

    def end_segment(self) -> None:
        """The segment is complete: idle motion, or silence, follows it. One LiveSegmentEnd will come for it. No segment: no effect."""
        with self._lock:
            self._check_open()
            self._end_segment()

    def interrupt(self) -> int:
        """Drop all that was not read yet. Returns the runtime's new turn. An interrupted segment gets its LiveSegmentEnd at once."""
        with self._lock:
            self._check_open()
            turn = self._session.interrupt()
            unread = self._out.drop_media()
            for segment in self._playback.drop():
                self._out.put(segment.result(unread, interrupted=True))
            self._segment = self._resampler = None
            self._feed.restart()
            self._pad = False
            self._ready.clear()
            self._next_pts, self._refilling = self._feed.accepted, True
            if self._idle and self._paced:
                self._fade.begin(self._last)
            self._changed.notify_all()
        return turn

    @property
    def remark(self) -> str:
        """`Session.remark` of the session within."""
        return self._session.remark

    def change(self, **what: Any) -> None:
        """Another image or prompt, as `Session.change`; with a `transition` a new shot, from the next block on, as `Session.cut`."""
        self._session.cut(at_once=True, **what) if "transition" in what else self._session.change(**what)

    def close(self, drain: bool = False, timeout_s: float = 30.0) -> None:
        """End the session. `drain`: first give out what was pushed, for `timeout_s` at most, if somebody reads it. May be called twice."""
        if drain and not self._closed:
            self.end_segment()
            end_s = self._now() + timeout_s
            with self._lock:
                self._changed.wait_for(lambda: not self._playback.segments or self._failed or self._closed, max(0.0, end_s - self._now()))
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._session.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)
        self._forget()

    # out

    def read(self, timeout_s: float) -> LiveEvent | None:
        """The next frame or event; None when there was none in time, or the session is closed. Raises what ended the session."""
        with self._lock:
            self._changed.wait_for(lambda: self._out or self._failed or self._closed, timeout_s)
            if self._out:
                return self._out.take()
            if self._failed:
                raise self._failed
            return None

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def format(self) -> BlockFormat:
        """Sample rate and frames of the model's blocks."""
        return self._format

    @property
    def finished(self) -> bool:
        """Closed, and nothing is left to read."""
        return self._closed and not self._out

    @property
    def position(self) -> int:
        """Samples of the model's rate that the session has accepted, idle silence included: where audio pushed now would stand."""
        return self._feed.end

    @property
    def turn_begin(self) -> int:
        """Position of the first frame since the last interruption; a frame before it would be stale."""
        return self._feed.begin

    @property
    def timeline(self) -> Timeline:
        """Wall times of the last blocks. Read it only, and copy `blocks` before iterating."""
        return self._session.timeline

    def stats(self) -> LiveStats:
        with self._lock:
            times = sorted(b.seconds for b in list(self._session.timeline.blocks)[-32:] if b.seconds is not None)
            return LiveStats(
                self._count["frames"], self._count["idle"], self._count["held"], self._count["underruns"], self._out.dropped,
                (self._feed.end - self._next_pts) / self._format.sample_rate,
                1e3 * times[len(times) // 2] if times else None, self._session.timeline.first_frame_s,
                self._ladder.level, self._count["levels"], self._count["repeated"], self._count["refill"],
            )  # fmt: skip

    # inside

    def _check_open(self) -> None:
        if self._closed or self._session.state == CLOSED:
            raise Unavailable("the live session is closed: open another")
        if self._failed:
            raise self._failed

    def _accept(self, array_SC: np.ndarray, rate_hz: int) -> int:
        """Push as much as fits; the segment opens with its first samples."""
        if not len(array_SC):
            return 0
        if self._segment is None:
            resampler = StreamResampler(rate_hz, self._format.sample_rate)
            if self._feed.room() * rate_hz // self._format.sample_rate <= 64:
                return 0  # full: no segment without a sample, which would get a result
            self._resampler, self._pad = resampler, False  # what comes now fills up the last segment's block
            self._feed.add(torch.zeros(self._to_frame(self._feed.end)))  # an audio frame is of one segment
            self._segment = self._playback.open(rate_hz, self._feed.end)
            self._form = (array_SC.dtype, array_SC.shape[1])
        segment, resampler = self._segment, self._resampler
        assert resampler is not None
        if rate_hz != segment.rate_hz:
            raise BadInput(f"audio at {rate_hz} Hz came within a segment at {segment.rate_hz} Hz: end the segment first")
        if (array_SC.dtype, array_SC.shape[1]) != self._form:
            form = f"{self._form[0]} in {self._form[1]} channel(s)"
            raise BadInput(f"audio came as {array_SC.dtype} in {array_SC.shape[1]} channel(s) within a segment of {form}: end the segment first")
        part = array_SC[: max(0, self._feed.room() * rate_hz // self._format.sample_rate - 64)]
        if len(part):
            self._push(segment, resampler.push(part))
            segment.add(part.copy())
            self._pushed_s = self._now()
        return len(part)

    def _push(self, segment: Segment, audio_S: torch.Tensor) -> None:
        """What the session has no room for waits."""
        segment.model_samples += audio_S.numel()
        self._feed.add(audio_S)
        self._flush()

    def _flush(self) -> None:
        """Push what waits, but at a pace no more than is soon shown: what waits can still be made at another level, or be interrupted."""
        ahead_s = lead_s(self._session.timeline.blocks) + max(self._jitter_s, self._format.block_s + self._feed.reach / self._format.sample_rate)
        self._feed.push(self._next_pts + int(ahead_s * self._format.sample_rate) if self._paced else None)

    def _end_segment(self) -> None:
        segment, resampler = self._segment, self._resampler
        if segment is None or resampler is None:
            return
        self._push(segment, resampler.push(np.zeros((0, 1), np.float32), last=True))
        segment.ended = True
        self._segment = self._resampler = None
        self._pad = not self._idle

    def _pad_block(self) -> None:
        """Complete the last block with silence."""
        if self._feed.is_short:
            self._feed.pad()
            self._pad = False
            self._flush()

    def _run(self) -> None:
        """The session's own thread: idle audio in, finished frames out at their time."""
        while True:
            with self._lock:
                if self._closed:
                    return
                try:
                    self._flush()
                    if self._pad:
                        self._pad_block()
                    self._keep_alive()
                    self._collect()
                    self._give_out()
                except EverfaceError as error:
                    self._failed = error
                    self._changed.notify_all()
                    return
            due_s = self._due_s if self._paced and (self._ready or self._idle) else None  # of the next frame; a block may be finished before
            pause_s = TICK_S if due_s is None else min(TICK_S, max(0.0, due_s - self._now()))
            (time.sleep if self._ready else self._session.wait)(pause_s)

    def _keep_alive(self) -> None:
        """Push silence when no audio of the caller's is on its way, frame by frame, so that there is always just enough for speech that begins
        now to be collected and made into a block before the video runs out. After an interruption, a block first."""
        if not self._idle:
            return
        paused = self._segment is not None and self._now() - self._pushed_s > STALL_S
        if self._segment is not None and not paused:
            return
        until_due_s = max(0.0, self._due_s - self._now()) if self._paced and self._due_s is not None else 0.0
        ahead_s = 0.0 if self._refilling else lead_s(self._session.timeline.blocks) - until_due_s
        missing = self._next_pts + self._feed.reach + int(ahead_s * self._format.sample_rate) - self._feed.end
        if missing > 0:
            if paused:
                self._end_segment()
            self._feed.add(torch.zeros(missing + self._to_frame(self._feed.end + missing)))
            self._flush()

    def _to_frame(self, position: int) -> int:
        """Samples from a position to the next frame that begins there or after it."""
        return (self._feed.begin - position) % (self._frame * self._feed.factor)

    def _collect(self) -> None:
        """Take what is finished; without a pace the reader's own is the pace, and what it does not take stays in the runtime's bounds."""
        if not self._paced and self._out.full:
            return
        for block in self._session.poll():
            for i, frame in enumerate(block.frames_THW3.cpu().numpy()):
                pts, factor = self._feed.place(block.pts + i * self._frame)
                self._ready.extend((pts + n * self._frame, frame, n > 0) for n in range(factor))
        for event in self._session.events():
            if not isinstance(event, SegmentEnd):
                self._out.put(event)
                self._changed.notify_all()

    def _give_out(self) -> None:
        while True:
            now_s = self._now()
            if self._due_s is None:
                if not self._ready:
                    return
                self._due_s = now_s
            if self._paced and now_s < self._due_s:
                return
            if self._ready:
                self._refilling = False
                self._observe(now_s, now_s - self._due_s > self.frame_s)
                self._give_frame(*self._ready.popleft())
            elif self._paced and self._idle and self._last is not None:
                self._observe(now_s, self._feed.complete > self._next_pts and not self._refilling)
                self._hold()
            else:
                return
            self._due_s = (self._due_s + self.frame_s) if self._paced else now_s
            if self._paced and now_s - self._due_s > 1.0:  # the process was stopped: begin a new cadence
                self._due_s = now_s

    def _observe(self, now_s: float, late: bool) -> None:
        """Move on the ladder, from the next block on."""
        if not self._paced or not self._ladder.observe(now_s, late, self._next_pts >= self._level_from):
            return
        level = self._ladder.level
        change, below = self._cheaper[min(level, len(self._cheaper) - 1)], level - len(self._cheaper)
        if change and level < len(self._cheaper):
            self._session.change(**change)
        self._feed.factor = 1 if below < 0 else FACTORS[below]
        self._level_from = self._feed.accepted
        self._count["levels"] += 1
        what = describe_level(change, self._feed.factor)
        self._out.put(QualityChange(level, what, self._next_pts / self._format.sample_rate))
        log.warning("session %d: quality level %d from %.1f s on: %s", self._session.id, level, self._level_from / self._format.sample_rate, what)

    def _give_frame(self, pts: int, image_HW3: np.ndarray, repeated: bool) -> None:
        if self._short:
            self._count["underruns"] += 1
            self._out.put(Underrun(self._short, pts / self._format.sample_rate))
            self._short = 0
        rate = self._format.sample_rate
        idle = self._playback.within(pts, pts + self._frame) is None
        image_HW3 = self._fade.apply(image_HW3)
        self._last, self._next_pts = image_HW3, pts + self._frame
        if self._idle or not idle:  # else it shows the silence that filled up a segment's last block
            samples, hz = self._playback.slice(pts, pts + self._frame, self._playback_hz, 1)
            self._out.put(VideoFrame(image_HW3, pts, pts / rate, idle, repeated))
            self._out.put(AudioFrame(samples, hz, pts, pts / rate))
            self._count["frames"] += 1
            self._count["idle"] += idle
            self._count["repeated"] += repeated
        for segment in self._playback.finished(self._next_pts):
            self._out.put_result(segment)
        self._changed.notify_all()

    def _hold(self) -> None:
        assert self._last is not None
        self._short += not self._refilling
        self._count["refill" if self._refilling else "held"] += 1
        self._out.put(VideoFrame(self._last, self._next_pts, self._next_pts / self._format.sample_rate, True, held=True))
        self._changed.notify_all()
