"""One viewer: sound in, frames out, in order. Its clock is the count of accepted samples.

Sound is cut into blocks of 12 video frames. A block is prepared, by the thread that pushes, once its samples and the look-ahead are
there or the sound has ended; the desk takes prepared blocks in turn with those of other sessions. Before the revision's first sample and
after its last there is silence. Threads may push, poll, interrupt and close at the same time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from everface.core.block import Block, OpenSession, Tensors
from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.core.log import log
from everface.runtime.timeline import Clock
from everface.runtime.events import Event, FrameBlock, Recovered, Recovering, Segment
from everface.runtime.audio_buffer import Intake
from everface.runtime.in_flight import Cut, Ledger, Sent
from everface.runtime.stage import Cancel, Failure, Opened, Cancelled

if TYPE_CHECKING:
    from everface.runtime.scheduler import Desk

REFRESH_AT = 4  # blocks; the official first clip
WAIT_S = 0.2  # longest single wait, so that whatever another thread did is soon seen
OPEN_S = 600.0  # for every stage to take a session in
FINISHED = 4  # blocks that may wait for the viewer, besides those in flight: 1.9 s of video
EVENTS = 4096  # events that may wait to be read; beyond it the oldest go
CLEAN, SINK, FINITE = "clean", "sink", "finite"
OPENING, OPEN, CLOSED = "opening", "open", "closed"

Condition = Callable[[int, torch.Tensor], Tensors]
Noise = Callable[[int], torch.Tensor]


class Session:
    """`condition(index, pcm)`: what rides with a block, from its window of float32 sound [lookback + block + lookahead];
    `noise(index)`: the latent it starts as. Block 0 must come back with condition "clean": block `refresh_at` carries it as
    condition "sink", and is not emitted before it is there, which makes every placement compute the same bits.
    """

    def __init__(
        self, desk: Desk, tensors: Tensors, condition: Condition, noise: Noise, *,
        params: dict[str, int | float | str | bool] | None = None, frames_per_block: int = 12,
        lookback_samples: int = 0, lookahead_samples: int = 0, refresh_at: int | None = REFRESH_AT, buffer_s: float = 10.0,
    ):  # fmt: skip
        if lookback_samples < 0 or lookahead_samples < 0 or (refresh_at is not None and refresh_at < 1):
            raise BadInput(
                "look-back and look-ahead cannot be negative, nor the sink be refreshed before block 1: mend the settings"
            )
        self._desk, self._condition, self._noise = desk, condition, noise
        self._frames, self._block = frames_per_block, frames_per_block * SAMPLES_PER_FRAME
        self.block_s = self._block / SAMPLE_RATE
        self._limit = int(buffer_s * SAMPLE_RATE)
        if self._limit < self._block + lookahead_samples:
            raise BadInput(f"a buffer of {buffer_s:g} s does not hold one block and its look-ahead: allow more")
        self.clock = Clock(desk.now)
        self.revision = 0
        self.state = OPENING
        self.due_s = 0.0  # the desk's own: whose turn it is
        self._tensors, self._params = tensors, params or {}
        self._changed = threading.Condition(threading.RLock())
        self._pushing = threading.Lock()  # sound is cut and prepared in the order it came; acquired before _changed, never inside
        self._intake = Intake(self._block, lookback_samples, lookahead_samples)
        self._at = 0  # first sample of the next block to emit
        self._shown = 0  # samples before it were handed out as frames
        self._resulted = True  # the revision has had its Segment, or has no sound yet
        self._ledger = Ledger()
        self._finished: deque[FrameBlock] = deque()
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._clean: torch.Tensor | None = None
        self._refresh_at = refresh_at  # first block that must carry the sink; None: it has been set, or never will be
        self._failed: EverfaceError | None = None
        self._down_s: float | None = None  # since when frames stopped
        self.id = desk.open(self)

    def wait_open(self, timeout_s: float = OPEN_S) -> Self:
        """Until every stage has the session. Raises what kept it from it, the session closed then."""
        end_s = self._desk.now() + timeout_s
        try:
            while self.state == OPENING:
                if self._failed:
                    raise self._failed
                if self._desk.now() > end_s:
                    raise Unavailable(f"session {self.id} was not opened within {timeout_s:g} s: use a faster device")
                with self._changed:
                    if self._desk.threaded and self.state == OPENING and not self._failed:
                        self._changed.wait(WAIT_S)
                self._desk.pump(WAIT_S)
        except BaseException:
            self.close()
            raise
        return self

    # sound

    @property
    def accepted(self) -> int:
        """Samples since the session opened: its clock."""
        return self._intake.accepted

    def push(self, pcm: torch.Tensor | np.ndarray) -> bool:
        """Accept mono float32 sound at 16 kHz, or, if more than the buffer would then wait, answer False and accept none of it."""
        pcm = torch.from_numpy(pcm) if isinstance(pcm, np.ndarray) else pcm
        if pcm.ndim != 1 or pcm.dtype != torch.float32:
            raise BadInput(
                f"sound of shape {list(pcm.shape)} and {pcm.dtype} cannot be used: push mono float32 samples at 16 kHz"
            )
        if not bool(torch.isfinite(pcm).all()):
            raise BadInput("the sound holds values that are not finite: repair it before pushing")
        if pcm.numel() > self._limit:
            raise BadInput(f"{pcm.numel()} samples at once do not fit into the buffer of {self._limit}: push smaller pieces")
        with self._pushing:
            with self._changed:
                self._check_open()
                if self._intake.ended:
                    raise BadInput("sound came after end(): call interrupt() to begin anew, or open another session")
                if self.accepted - self._at + pcm.numel() > self._limit:
                    return False
                if pcm.numel():
                    self._intake.add(pcm)
                    self._resulted = False
                    self.clock.on_cancel()
            self._prepare()
        return True

    def end(self) -> None:
        """No more sound in this revision: what waits is padded with silence to whole blocks."""
        with self._pushing:
            with self._changed:
                self._check_open()
                self._intake.ended = True
            self._prepare()
            with self._changed:
                self._conclude()
                self._changed.notify_all()

    def interrupt(self) -> int:
        """Drop all that is not delivered; sound pushed from now on belongs to the revision answered. Nothing pushed: no change."""
        with self._changed:
            self._check_open()
            if self.accepted == self._intake.begin and not self._intake.ended:
                return self.revision
            self._conclude(interrupted=True)
            self.revision += 1
            self._intake.anew()
            self._at = self._shown = self.accepted
            self._resulted = True
            self._finished.clear()
            notice = Cancel(self.id, self._ledger.drop())
            self._changed.notify_all()
        self._desk.tell(notice)
        return self.revision

    def change(self, tensors: Tensors) -> None:
        """A new picture or prompt, as condition tensors (sink, motion, text): they ride with the next block that is emitted."""
        with self._changed:
            self._check_open()
            self._refresh_at = None
            self._ledger.prime({**self._ledger.priming, **tensors})

    # frames

    def poll(self) -> list[FrameBlock]:
        """Blocks finished since the last call, in order. Does not wait."""
        self._desk.pump(0.0)
        with self._changed:
            self._check_failed()
            blocks: list[FrameBlock] = []
            while block := self._next_finished():
                blocks.append(block)
        if blocks:
            self._desk.wake()
        return blocks

    def frames(self) -> Iterator[FrameBlock]:
        """Blocks as they finish, until end() has been called and all are delivered; until then it waits for sound."""
        while True:
            with self._changed:
                self._check_failed()
                if self.state == CLOSED:
                    return
                if not self._finished:
                    if self._intake.ended and self._all_emitted() and not self._ledger.flying:
                        return
                    if self._desk.threaded:
                        self._changed.wait(WAIT_S)
            self._desk.pump(WAIT_S)
            while block := self._next_finished():  # one at a time: an interrupt between two of them drops the second
                self._desk.wake()
                yield block

    def events(self) -> list[Event]:
        """What happened since the last call: one Segment an revision of sound, Recovering, Recovered."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
            return events

    def wait(self, timeout_s: float) -> bool:
        """Until there are frames or events to be had, or the time is over; False then."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._finished or self._events or self._failed), timeout_s)

    def close(self) -> None:
        """Drop what is in flight, free the session's caches on every stage. May be called twice."""
        with self._changed:
            if self.state == CLOSED:
                return
            self._conclude(interrupted=True)
            self.state = CLOSED
            self._finished.clear()
            self._ledger.clear()
            self._changed.notify_all()
        self._desk.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # for the desk

    def opening(self) -> OpenSession:
        return OpenSession(self.id, self._tensors, self._params)

    def ready(self) -> bool:
        """Is there a block to emit now? Not while the viewer leaves too many finished ones lying."""
        with self._changed:
            if self.state != OPEN or self._failed or not self._ledger.waiting:
                return False
            if len(self._finished) + len(self._ledger.flying) >= FINISHED + self._desk.depth:
                return False
            index = self._ledger.waiting[0].index
            if self._refresh_at is None or index < self._refresh_at or self._clean is not None:
                return True
            return all(sent.cut.index for sent in self._ledger.flying)  # block 0 may yet bring it

    def emit(self) -> Block | None:
        """The next block, which is in flight from now on; None if an interruption came in between."""
        with self._changed:
            if not self.ready():
                return None
            cut = self._ledger.waiting[0]
            if self._refresh_at is not None and cut.index >= self._refresh_at:
                if self._clean is not None:
                    self._ledger.prime({**self._ledger.priming, SINK: self._clean})
                else:
                    log.warning("session %d keeps its first sink: its first block was interrupted", self.id)
                self._refresh_at = None
            block = self._ledger.send(self.id, self._noise)
            self._at = max(self._at, cut.pts + min(self._block, cut.frames * SAMPLES_PER_FRAME))
            self.clock.emit(block.index, block.pts)
            return block

    def accept(self, answer: Block | Cancelled | Failure | Opened) -> bool:
        """Take an answer of the pipeline. True: what the stages hold of this session is worthless, open it again."""
        with self._changed:
            if self.state == CLOSED:
                return False
            if isinstance(answer, Opened):
                if self.state == OPENING:
                    self.state = OPEN
                if not self._ledger.waiting and not self._ledger.flying:
                    self._recovered()
                self._changed.notify_all()
                return False
            if isinstance(answer, Failure) and answer.index < 0:
                self.fail(Unavailable(f"session {self.id} could not be opened on {answer.role}: {answer.reason}"))
                return False
            sent = self._ledger.land(answer)
            if isinstance(answer, Cancelled) or self._failed:
                return False
            if isinstance(answer, Failure):
                if sent.opening != self._ledger.openings:
                    return False
                return self._retry(sent, f"{answer.role} failed at block {answer.index}: {answer.reason}")
            finite = answer.condition.get(FINITE)
            if finite is not None and not bool(finite.all()):
                role = int((finite == 0).nonzero()[0])
                what = f"role {role} of the pipeline gave values that are not finite at block {answer.index}"
                return not sent.stale and self._retry(sent, what, renew=True)
            self._deliver(sent, answer)
            return False

    def pause(self, reason: str) -> None:
        """The pipeline lost a stage: frames stop for a while."""
        with self._changed:
            if self.state != CLOSED and self._down_s is None:
                self._down_s = self._desk.now()
                self._events.append(Recovering(reason))
                self._changed.notify_all()

    def resume(self) -> OpenSession:
        """The stages and all in flight are lost: everything that is not delivered, and what it needs before it, is sent again."""
        with self._changed:
            self._ledger.resend()
            return self.opening()

    def fail(self, error: EverfaceError) -> None:
        """No more frames will come: whoever asks for them is told."""
        with self._changed:
            if not self._failed and self.state != CLOSED:
                self._failed = error
                self._conclude()
                self._changed.notify_all()

    # inside

    def _check_open(self) -> None:
        if self.state == CLOSED:
            raise Unavailable(f"session {self.id} is closed: open another")
        if self._failed:
            raise self._failed

    def _check_failed(self) -> None:
        """What was finished before the failure can still be had."""
        if self._failed and not self._finished:
            raise self._failed

    def _all_emitted(self) -> bool:
        return self._intake.at >= self.accepted and not self._ledger.waiting

    def _prepare(self) -> None:
        """Cut what is complete into blocks and compute what rides with them, outside the lock: features take their time."""
        while True:
            with self._changed:
                if self.state == CLOSED:
                    return
                found = self._intake.window()
                if found is None:
                    return
                window, frames, last = found
                cut = Cut(self._ledger.next_index(), self.revision, self._intake.at, frames, last)
            cut.condition = self._condition(cut.index, window)
            with self._changed:
                if cut.revision != self.revision or self.state == CLOSED:
                    continue
                self._intake.advance()
                self._ledger.waiting.append(cut)
            self._desk.wake()

    def _deliver(self, sent: Sent, answer: Block) -> None:
        if answer.index == 0 and self._refresh_at is not None and self._clean is None:
            if CLEAN not in answer.condition:
                raise RuntimeError("block 0 came back without its clean latent, which the sink needs")
            self._clean = answer.condition[CLEAN].clone()
        if sent.stale or sent.cut.delivered:
            return
        if answer.x.dtype != torch.uint8 or answer.x.shape[0] != self._frames:
            raise RuntimeError(
                f"the last role gave {answer.x.dtype} {list(answer.x.shape)} instead of {self._frames} uint8 frames"
            )
        self._recovered()
        self._ledger.keep(sent.cut)
        self.clock.deliver(answer.index, answer.frames)
        self._finished.append(FrameBlock(answer.x[: answer.frames], answer.pts, sent.cut.revision, answer.index))
        self._changed.notify_all()

    def _recovered(self) -> None:
        if self._down_s is not None:
            self._events.append(Recovered(self._desk.now() - self._down_s, self._ledger.again))
            self._down_s = None

    def _retry(self, sent: Sent, what: str, renew: bool = False) -> bool:
        """Once more with the whole session opened again; the second time it is the session's end."""
        sent.cut.tries += not sent.stale
        if sent.cut.tries > 1:
            self.fail(Unavailable(f"session {self.id} has ended, {what}, twice: open another"))
            return False
        if renew and sent.cut.noise is not None:  # other noise may lead elsewhere
            sent.cut.noise = torch.randn(sent.cut.noise.shape, generator=torch.Generator().manual_seed(sent.cut.index))
        self.pause(what)
        self._ledger.resend(sent)
        return True

    def _next_finished(self) -> FrameBlock | None:
        with self._changed:
            if not self._finished:
                return None
            block = self._finished.popleft()
            self._shown = min(self.accepted, block.pts + len(block.frames_THW3) * SAMPLES_PER_FRAME)
            self._conclude()
            return block

    def _conclude(self, interrupted: bool = False) -> None:
        """Give the revision's one result: when all of its ended sound is shown, or when there will be no more of it."""
        done = self._intake.ended and self._shown >= self.accepted
        over = interrupted or (self._failed is not None and not self._finished)
        if not self._resulted and (over or done):
            self._resulted = True
            self._events.append(Segment(self.revision, self._intake.begin, self.accepted, self._shown, not done))
