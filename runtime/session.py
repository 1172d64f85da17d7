"""A session: audio in, video out, in order. Its clock is the count of accepted samples.

A session is passive. Callers put audio into it and take video blocks and events out of it; the scheduler does the rest from its own
thread, woken by the session's signal. Every method may be called from any thread.

A turn is the audio between two interruptions. Before a turn's first sample and after its last there is silence.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.runtime.audio_buffer import AudioBuffer
from everface.runtime.events import Event, SegmentEnd, VideoBlock
from everface.runtime.messages import Tensors
from everface.runtime.model import SessionModel, Window
from everface.runtime.samples import check_samples
from everface.runtime.signal import Signal
from everface.runtime.timeline import Timeline

WAIT_S = 0.2  # longest single wait, so that whatever another thread did is soon seen
OPEN_S = 600.0  # for every stage to open a session
MOST_UPDATES = 64  # changes and cuts that may wait for their audio
EVENTS = 4096  # events that may wait to be read; beyond it the oldest are dropped
OPENING, OPEN, CLOSED = "opening", "open", "closed"


@dataclass(frozen=True)
class StateUpdate:
    """What a caller changed, for the first block at position `at` or behind it; a cut, if this block begins a new shot."""

    tensors: Tensors
    cut: bool
    at: int

    def is_due(self, pts: int | None) -> bool:
        """Whether a block at `pts` takes it over; None: whether any block does, first of its shot or not."""
        return not self.cut if pts is None else self.at <= pts


@dataclass(frozen=True)
class SessionStats:
    """Where a session stands. Samples are counted since it opened."""

    accepted: int  # samples
    queued: int  # accepted samples whose block was not sent yet
    shown: int  # samples before this one were handed out as frames
    finished: int  # blocks that wait to be polled
    turn: int


class Session:
    """Made by `Scheduler.open_session`. `buffer_s`: most seconds of audio that may wait. `parts`: the frames of a block may come in several
    VideoBlocks of its index, as they are made, where the model can do that; else they come together."""

    def __init__(
        self, id: int, model: SessionModel, signal: Signal, buffer_s: float = 10.0, now: Callable[[], float] = time.monotonic,
        parts: bool = False,
    ):  # fmt: skip
        self.id, self.format, self.parts = id, model.format, parts
        self._model, self._signal, self._now = model, signal, now
        self._limit = int(buffer_s * self.format.sample_rate)
        if self._limit < self.format.samples(1) + self.format.lookahead_samples:
            raise BadInput(f"a buffer of {buffer_s:g} s does not hold one block and its look-ahead: allow more")
        self.state = OPENING
        self.turn = 0
        self.timeline = Timeline(now, 1 / model.format.fps)
        # Taken as `with self._lock`, not as `with self._changed`, into which Ctrl-C can come and leave it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # inbox
        self._buffer = AudioBuffer(self.format)
        self._updates: deque[StateUpdate] = deque()
        # outbox
        self._blocks: deque[VideoBlock] = deque()
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._failed: EverfaceError | None = None
        self._sent = 0  # samples before it were sent as blocks
        self._shown = 0  # samples before it were handed out as frames
        self.block_end = 0  # number behind the last block of which frames were handed out
        self._reported = True  # the turn has had its SegmentEnd, or has no audio yet

    # for callers: in

    def wait_open(self, timeout_s: float = OPEN_S) -> Self:
        """Until every stage has opened the session. Raises whatever prevented it, `close` included; the session is closed then."""
        with self._lock:
            self._changed.wait_for(lambda: self.state != OPENING or self._failed, timeout_s)
            failed = self._failed
            if not failed and self.state == OPENING:
                failed = Unavailable(f"session {self.id} did not open in {timeout_s:g} s: use a faster device")
            if not failed and self.state == CLOSED:
                failed = Unavailable(f"session {self.id} was closed before it opened: open another")
        if failed:
            self.close()
            raise failed
        return self

    def push_audio(self, audio_S: torch.Tensor | np.ndarray) -> bool:
        """Accept mono float32 audio [S], full scale 1, at the model's sample rate, `format.sample_rate`; with several `format.audio_channels`
        [channels, S]. Where the model listens (`format.user_audio`), the second row is what the person hears. The samples are copied.

        Peaks up to `samples.MAX_PEAK` are accepted. Returns False, and accepts nothing, while more than the buffer would wait: poll and push
        again. Raises BadInput for audio of another kind, or after `end_segment`; Unavailable when the session is closed or has failed.
        """
        audio_S = check_samples(audio_S, self.format.sample_rate, self.format.audio_channels, self.format.user_audio)
        samples = audio_S.shape[-1]
        if samples > self._limit:
            raise BadInput(f"{samples} samples at once do not fit the buffer of {self._limit}: push smaller pieces")
        with self._lock:
            self._check_open()
            if self._buffer.ended:
                raise BadInput("audio came after end_segment(): call interrupt() to start a turn, or open another session")
            if self._buffer.accepted - self._sent + samples > self._limit:
                return False
            if samples:
                self._buffer.add(audio_S)
                self._reported = False
                self.timeline.audio()
        self._signal.set()
        return True

    def end_segment(self) -> None:
        """No more audio in this turn: what waits is padded with silence to whole blocks."""
        with self._lock:
            self._check_open()
            self._buffer.ended = True
            self._report_end()
            self._changed.notify_all()
        self._signal.set()

    def interrupt(self) -> int:
        """Drop all that was not delivered; audio pushed from now on belongs to the turn returned. A turn without audio is kept."""
        with self._lock:
            self._check_open()
            if self._buffer.accepted == self._buffer.begin and not self._buffer.ended:
                return self.turn
            self._report_end(interrupted=True)
            self.turn += 1
            self._buffer.restart()
            self._sent = self._shown = self._buffer.accepted
            self._reported = True
            self._blocks.clear()
            self._changed.notify_all()
        self._signal.set()
        return self.turn

    @property
    def remark(self) -> str:
        """`SessionModel.remark`: a sentence about what was given last; empty if there is nothing to say."""
        return self._model.remark

    def change(self, **what: Any) -> None:
        """Change what the model lets a caller change, by its own keywords, from the next block on. Raises BadInput."""
        self._check_updates()
        self._update(self._model.change(**what), cut=False, at_once=True)

    def cut(self, *, at_once: bool = False, **what: Any) -> None:
        """Begin a new shot, described by the model's own keywords: nothing that was shown before it is continued.

        It begins with the frame that the next sample pushed falls into; the block before it ends there. at_once: with the next block, wherever
        its audio begins. Raises BadInput, and Unavailable while MOST_UPDATES changes and cuts wait for their audio.
        """
        self._check_updates()
        self._update(self._model.cut(**what), cut=True, at_once=at_once)

    def close(self) -> None:
        """Drop what is in flight and free the session's caches on every stage. May be called twice."""
        with self._lock:
            if self.state == CLOSED:
                return
            self._report_end(interrupted=True)
            self.state = CLOSED
            self._blocks.clear()
            self._changed.notify_all()
        self._signal.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # for callers: out

    def poll(self) -> list[VideoBlock]:
        """Blocks finished since the last call, in order, without waiting. Raises what ended the session, once all is handed out."""
        blocks: list[VideoBlock] = []
        with self._lock:
            while block := self._next_block():
                blocks.append(block)
            if not blocks and self._failed:
                raise self._failed
        return blocks

    def frames(self) -> Iterator[VideoBlock]:
        """Blocks as they finish, until end_segment() was called and all are delivered, or the session is closed; it waits for audio.

        Raises what ended the session before that.
        """
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._blocks or self._failed or self.finished, WAIT_S)
                block = self._next_block()  # one at a time: an interruption between two of them drops the second
                if block is None:
                    if self._failed and not self._complete:
                        raise self._failed
                    if self.finished:
                        return
            if block is not None:
                yield block

    def stream(self, audio: Iterable[torch.Tensor | np.ndarray]) -> Iterator[VideoBlock]:
        """Push audio piece by piece as there is room, then end the segment; yields blocks as they finish. A generator of pieces is asked for the
        next one just before that is pushed, so it may `cut` there. Raises as `push_audio` and `frames`."""
        for audio_S in audio:
            while not self.push_audio(audio_S):
                self.wait_room(audio_S.shape[-1], WAIT_S)
                yield from self.poll()
            yield from self.poll()
        self.end_segment()
        yield from self.frames()

    def events(self) -> list[Event]:
        """What happened since the last call: one SegmentEnd a turn with audio, Recovering, Recovered."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
            return events

    def wait(self, timeout_s: float) -> bool:
        """Until there are blocks or events to take, or the session fails or is closed.

        Returns False when there is nothing to take: after `timeout_s`, or at once when the session is closed.
        """

        def something() -> bool:
            return bool(self._blocks or self._events or self._failed)

        with self._lock:
            self._changed.wait_for(lambda: something() or self.state == CLOSED, timeout_s)
            return something()

    def wait_room(self, samples: int, timeout_s: float) -> bool:
        """Until `push_audio` would accept so many samples. Returns False when it would not: after `timeout_s`, or at once when there are blocks to take, or the session
        has failed or is closed. Unlike `wait`, not for events, which whoever pushes need not take."""
        with self._lock:
            self._changed.wait_for(lambda: self.room() >= samples or self._blocks or self._failed or self.state == CLOSED, timeout_s)
            return self.room() >= samples

    @property
    def finished(self) -> bool:
        """Closed, or the segment was ended and all of it delivered."""
        with self._lock:
            return self.state == CLOSED or self._complete

    @property
    def accepted(self) -> int:
        """Samples since the session opened: its clock."""
        return self._buffer.accepted

    def room(self) -> int:
        """Samples that `push_audio` would accept now."""
        with self._lock:
            return self._limit - (self._buffer.accepted - self._sent)

    def stats(self) -> SessionStats:
        with self._lock:
            accepted = self._buffer.accepted
            return SessionStats(accepted, accepted - self._sent, self._shown, len({block.index for block in self._blocks}), self.turn)

    # for the scheduler: the inbox

    def take_window(self, index: int, turn: int) -> Window | None:
        """The next block's audio, when it is complete; None too when `turn` is over."""
        with self._lock:
            return None if self.state == CLOSED or turn != self.turn else self._buffer.take_window(index, turn)

    def take_updates(self, pts: int | None) -> list[StateUpdate]:
        """In the order of the calls: those that a block at `pts` takes over, or None: those that any block does, and no cut among them."""
        with self._lock:
            updates: list[StateUpdate] = []
            while self._updates and self._updates[0].is_due(pts):
                updates.append(self._updates.popleft())
            return updates

    # for the scheduler: the outbox

    def opened(self) -> None:
        with self._lock:
            if self.state == OPENING:
                self.state = OPEN
                self._changed.notify_all()

    def sent(self, index: int, window: Window) -> None:
        """A block was sent: its audio no longer waits."""
        with self._lock:
            self.timeline.sent(index, window.pts)
            if window.turn == self.turn:
                end = window.pts + min(self.format.samples(index), window.frames * self.format.samples_per_frame)
                self._sent = max(self._sent, end)
                self._changed.notify_all()  # whoever waits for room

    def deliver(self, block: VideoBlock, first: int = 0, *, last: bool = True) -> None:
        """Frames of a block from its frame `first` on, or the last of it. Dropped if an interruption overtook them."""
        with self._lock:
            if block.turn == self.turn and self.state != CLOSED:
                self.timeline.delivered(block.index, len(block.frames_THW3), first, last)
                if len(block.frames_THW3):
                    self._blocks.append(block)
                self._changed.notify_all()

    def report(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
            self._changed.notify_all()

    def fail(self, error: EverfaceError) -> None:
        """No more frames will come: whoever asks for them gets `error`."""
        with self._lock:
            if not self._failed and self.state != CLOSED:
                self._failed = error
                self._report_end()
                self._changed.notify_all()

    @property
    def failed(self) -> bool:
        return self._failed is not None

    # inside

    @property
    def _complete(self) -> bool:
        """The segment was ended, and all of it delivered."""
        return self._buffer.ended and self._shown >= self._buffer.accepted

    def _check_updates(self) -> None:
        with self._lock:
            self._check_open()
            if len(self._updates) >= MOST_UPDATES:
                raise Unavailable(f"{MOST_UPDATES} changes of session {self.id} wait for their audio: push audio first")

    def _update(self, tensors: Tensors, *, cut: bool, at_once: bool) -> None:
        with self._lock:
            self._updates.append(StateUpdate(tensors, cut, 0 if at_once else self._buffer.cut()))
        self._signal.set()

    def _check_open(self) -> None:
        if self._failed:
            raise self._failed
        if self.state == CLOSED:
            raise Unavailable(f"session {self.id} is closed: open another")

    def _next_block(self) -> VideoBlock | None:
        if not self._blocks:
            return None
        block = self._blocks.popleft()
        self.block_end = block.index + 1
        self._shown = min(self._buffer.accepted, block.pts + len(block.frames_THW3) * self.format.samples_per_frame)
        self._report_end()
        self._signal.set()
        return block

    def _report_end(self, interrupted: bool = False) -> None:
        """Give the turn's one result: when all of its ended audio is shown, or when there will be no more of it."""
        buffer, done = self._buffer, self._complete
        over = interrupted or (self._failed is not None and not self._blocks)
        if not self._reported and (over or done):
            self._reported = True
            self._events.append(SegmentEnd(self.turn, buffer.begin, buffer.accepted, self._shown, not done))
