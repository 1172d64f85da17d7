"""The scheduler's side of one session: what to prepare, what to send, what to make of a reply. For the scheduler's thread only."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import torch

from everface.core.errors import EverfaceError, Unavailable
from everface.core.log import log
from everface.runtime.events import Recovered, Recovering, VideoBlock
from everface.runtime.in_flight import InFlight, PreparedBlock, SentBlock
from everface.runtime.messages import (
    NEVER,
    Block,
    Cancel,
    Cancelled,
    CloseSession,
    Failure,
    Message,
    Opened,
    OpenSession,
    Tensors,
)
from everface.runtime.model import SessionModel
from everface.runtime.session import CLOSED, OPEN, Session

FINISHED = 4  # blocks that may wait for the caller, besides those in flight


class ScheduledSession:
    """`due_s` is when the session's next block is due, in seconds of video: the scheduler sends the earliest first."""

    def __init__(self, session: Session, model: SessionModel, now: Callable[[], float], due_s: float):
        self.session, self.model, self._now = session, model, now
        self.due_s = due_s
        self.known = False  # the stages may hold something of it
        self.requested = False  # they were asked to open it; False again when that is to be done once more
        self.closing = False  # and to close it
        self.in_flight = InFlight(model.format)
        self._turn = 0  # the turn whose blocks are wanted, as the stages know it
        self._job: tuple[PreparedBlock, Future[Tensors]] | None = None  # conditions that are being computed
        self._down_s: float | None = None  # since when frames stopped

    @property
    def id(self) -> int:
        return self.session.id

    # from the inbox

    def sync(self) -> Cancel | None:
        """Take over what the caller did. An interruption is returned as the message that tells the stages; while they still run again what they had lost,
        the session is to be opened once more instead, since a part of that is dropped and the next turn attends to all of it."""
        for update in self.session.take_updates(None):
            self.in_flight.merge_update(self.model.apply(update.tensors, None))
        if self.session.turn == self._turn:
            return None
        self._turn = self.session.turn
        self.model.interrupt(self.session.block_end)
        replaying, revision = self.in_flight.replaying, self.in_flight.cancel()
        if replaying:
            self.in_flight.resend()
            self.requested = False
        return Cancel(self.id, revision)

    def next_window(self) -> PreparedBlock | None:
        """The next block whose audio is complete, while no other is being prepared."""
        if self._job:
            return None
        index = self.in_flight.next_index
        window = self.session.take_window(index, self._turn)
        return PreparedBlock(index, window) if window else None

    def preparing(self, block: PreparedBlock, conditions: Future[Tensors]) -> None:
        self._job = block, conditions

    def collect(self) -> None:
        """Take over conditions that were computed meanwhile; those of a turn that was interrupted are dropped."""
        if self._job is None or not self._job[1].done():
            return
        (block, conditions), self._job = self._job, None
        try:
            block.condition = conditions.result()
        except EverfaceError as error:
            self.session.fail(error)
        except Exception as error:
            log.exception("the conditions of a block could not be computed")
            reason = f"{type(error).__name__}: {error}"
            self.session.fail(Unavailable(f"session {self.id} ended by a bug of everface, open another: {reason}"))
        else:
            if block.window.turn == self._turn:
                self.in_flight.waiting.append(block)

    # to the pipeline

    def open_messages(self) -> list[Message]:
        """Open it on the stages, closed before if they may hold something of it."""
        before = self.close_messages() if self.known else []
        self.known = self.requested = True
        return [*before, OpenSession(self.id, *self.model.initial_state(), parts=self.session.parts)]

    def close_messages(self) -> list[Message]:
        return [Cancel(self.id, NEVER), CloseSession(self.id)]

    def ready(self, depth: int) -> bool:
        """Whether there is a block to send now. Not while the caller leaves too many finished ones."""
        flight, session = self.in_flight, self.session
        if not self.requested or session.state != OPEN or session.failed or not flight.waiting:
            return False
        if session.stats().finished + len(flight.sent) >= FINISHED + depth:
            return False
        needed = self.model.depends_on(flight.waiting[0].index)
        return needed is None or all(sent.block.index != needed for sent in flight.sent)

    def next_block(self) -> Block:
        """The next block to send, in flight from now on."""
        prepared = self.in_flight.waiting[0]
        if prepared.x is None:  # it is sent for the first time
            for update in self.session.take_updates(prepared.window.pts):
                self.in_flight.merge_update(self.model.apply(update.tensors, prepared.index if update.cut else None))
            if due := self.model.update(prepared.index):
                self.in_flight.merge_update(due)
        block = self.in_flight.send(self.id, self.model)
        self.session.sent(block.index, prepared.window)
        return block

    # from the pipeline

    def accept(self, reply: Block | Cancelled | Failure | Opened) -> None:
        """Take a reply."""
        if self.session.state == CLOSED:
            return
        if isinstance(reply, Opened):
            self.session.opened()
            if self.requested and not self.in_flight.waiting and not self.in_flight.sent:
                self._recovered()
            return
        if isinstance(reply, Failure) and reply.index < 0:
            self.session.fail(Unavailable(f"session {self.id} could not be opened on {reply.role}: {reply.reason}"))
            return
        sent = self.in_flight.match(reply)
        if isinstance(reply, Cancelled) or self.session.failed:
            return
        if isinstance(reply, Failure):
            if sent.opening == self.in_flight.openings:
                self._retry(sent, f"{reply.role} failed at block {reply.index}: {reply.reason}")
        elif reason := self.model.invalid(reply.condition):
            if not reply.more and not sent.stale:  # the last of its parts will say so too
                self._retry(sent, f"{reason} at block {reply.index}", fresh_start=True)
        else:
            self._deliver(sent, reply)

    def pause(self, reason: str) -> None:
        """The pipeline lost a stage: frames stop for a while."""
        if self._down_s is None and self.session.state != CLOSED:
            self._down_s = self._now()
            self.session.report(Recovering(reason))

    def lost(self) -> None:
        """The stages and all in flight are lost: the session is to be opened, and everything that is not delivered, with what it needs before it, sent again."""
        if self.known:
            self.in_flight.resend(lost=True)
            self.known = self.requested = False

    # inside

    def _deliver(self, sent: SentBlock, reply: Block) -> None:
        if not reply.more:
            self.model.result(reply.index, reply.condition)
        block, format = sent.block, self.model.format
        if sent.stale or block.delivered:
            return
        end, expected = reply.first + reply.x.shape[0], format.samples(reply.index) // format.samples_per_frame
        if reply.x.dtype != torch.uint8 or (end > expected if reply.more else end != expected):
            raise RuntimeError(f"the last role returned {reply.x.dtype} {list(reply.x.shape)} instead of {expected} uint8 frames")
        self._recovered()
        if not reply.more:
            self.in_flight.delivered(block)
        begin, end = block.shown, min(end, reply.frames)  # a block that is made again has been shown in part
        if end > begin or not reply.more:
            frames_THW3, pts = reply.x[begin - reply.first : max(begin, end) - reply.first], reply.pts + begin * format.samples_per_frame
            block.shown = max(begin, end)
            self.session.deliver(VideoBlock(frames_THW3, pts, block.window.turn, reply.index), begin, last=not reply.more)

    def _recovered(self) -> None:
        if self._down_s is not None:
            self.session.report(Recovered(self._now() - self._down_s, self.in_flight.recomputed))
            self._down_s = None

    def _retry(self, sent: SentBlock, what: str, fresh_start: bool = False) -> None:
        """Once more, with the whole session opened again; the second failure of a block is the session's end."""
        block = sent.block
        block.failures += not sent.stale
        if block.failures > 1:
            self.session.fail(Unavailable(f"session {self.id} has ended, {what}, twice: open another"))
            return
        if fresh_start and block.x is not None:  # another start may lead elsewhere
            block.x = self.model.initial_x(block.index, block.failures)
        self.pause(what)
        self.in_flight.resend(sent)
        self.requested = False
