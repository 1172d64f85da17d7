"""Shares one pipeline among sessions: takes audio from their inboxes, sends their blocks, delivers results, recovers lost stages.

The next block is that of the session that is due first. A session is due one block's length of video after its last block, but never
earlier than those it has kept waiting: who needs less than an equal share is served at once, the rest is shared equally, and who joins
late owes nothing and is owed nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from everface.core.errors import EverfaceError, Unavailable
from everface.core.log import log
from everface.runtime.exit_hook import close_at_exit
from everface.runtime.messages import Closed, Message, Reply, Tensors
from everface.runtime.model import SessionModel
from everface.runtime.pipeline import Pipeline, PipelineLost
from everface.runtime.preparer import Preparer, complete
from everface.runtime.scheduled_session import ScheduledSession
from everface.runtime.session import CLOSED, Session

IDLE_S = 1.0  # the scheduler's thread looks around so often even if nobody wakes it
STOP_S = 5.0  # for each of the scheduler's threads to end
CLOSED_REASON = "the pipeline is closed: start another"


class Scheduler:
    """With `threaded` it has two threads: one schedules, one prepares blocks. Else the caller calls `run_once` (tests, simulation).

    With threads, it is closed when the program's main thread ends, if not before.
    """

    def __init__(self, pipeline: Pipeline, limit: int = 4, *, threaded: bool = True, now: Callable[[], float] = time.monotonic):
        self.pipeline, self.limit, self.now = pipeline, limit, now
        self.recoveries: deque[tuple[str, float]] = deque(maxlen=100)  # what was lost, and the seconds until the stages were back
        self._sessions: dict[int, ScheduledSession] = {}  # open, and closed ones whose last replies are still to come
        self._lock = threading.Lock()  # guards _sessions against open_session from other threads
        self._due_s = 0.0  # when the block sent last was due, in seconds of video
        self.recovering = False  # stages are being brought back
        self._ended: EverfaceError | None = None
        self._draining = self._stop = False
        self._preparer = Preparer(pipeline.signal.set) if threaded else None
        self._thread = threading.Thread(target=self._run, name="everface scheduler", daemon=True) if threaded else None
        if self._thread:
            self._thread.start()
            self._forget = close_at_exit(self.close)

    def open_session(self, model: SessionModel, buffer_s: float = 10.0, *, parts: bool = False) -> Session:
        """A session, which opens in the background: `wait_open` waits for it. `parts`: as for `Session`. From any thread.

        Raises Unavailable if there are too many sessions, or the scheduler is closed.
        """
        with self._lock:
            if self._ended or self._draining:
                raise self._ended or Unavailable(CLOSED_REASON)
            if sum(s.session.state != CLOSED for s in self._sessions.values()) >= self.limit:
                raise Unavailable(f"this pipeline serves {self.limit} sessions already: close one, or allow more")
            session = Session(self.pipeline.new_session_id(), model, self.pipeline.signal, buffer_s, self.now, parts)
            self._sessions[session.id] = ScheduledSession(session, model, self.now, self._due_s)
        self.pipeline.signal.set()
        return session

    @property
    def sessions(self) -> int:
        """Open ones."""
        return sum(s.session.state != CLOSED for s in self._all())

    @property
    def failure(self) -> EverfaceError | None:
        """Why it has ended: the pipeline will not come back."""
        return self._ended

    @property
    def busy(self) -> bool:
        """Whether the stages may still hold something of a session, open or closed."""
        return bool(self._sessions) or self.pipeline.in_flight > 0

    def close(self, drain_s: float = 0.0) -> None:
        """Admit nobody, give callers `drain_s` to close their sessions, then end what is left and the pipeline. From any thread.

        Sessions that are left fail with Unavailable, which wakes whoever waits for them. A thread that does not end within seconds, because
        a device hangs, is left behind with a warning. May be called twice.
        """
        self._stop_working(drain_s)
        self.pipeline.close()
        if not self._join():  # closing the pipeline has ended what it waited for
            log.warning("the scheduler still waits for the pipeline: it ends with the process")
        self._end(Unavailable(CLOSED_REASON))

    def detach(self, drain_s: float = 0.0) -> None:
        """As `close`, but leave the pipeline to another scheduler."""
        self._stop_working(drain_s)
        self.dispatch()  # tell the stages of the sessions that were closed just now
        end_s = time.monotonic() + STOP_S
        while not self._ended and not all(s.closing for s in self._all()) and time.monotonic() < end_s:  # of many, some now
            self.pipeline.signal.wait(0.01)
            self.run_once()
        self._end(Unavailable(CLOSED_REASON))

    def run_once(self) -> None:
        """Apply what callers did, send what is ready, take every reply that is there, send again."""

        def work() -> None:
            self._dispatch()
            while (reply := self.pipeline.receive()) is not None:
                self._route(reply)
            self._dispatch()

        self._guarded(work)

    def dispatch(self) -> None:
        """The first half of `run_once`."""
        self._guarded(self._dispatch)

    # inside

    def _stop_working(self, drain_s: float) -> None:
        end_s = time.monotonic() + drain_s
        self._draining = True
        while self.sessions and time.monotonic() < end_s:
            time.sleep(0.01)
        for s in self._all():
            s.session.fail(Unavailable(CLOSED_REASON))
            s.session.close()
        self._stop = True
        self.pipeline.signal.set()
        self._join()
        if self._preparer and not self._preparer.close(STOP_S):
            log.warning("the conditions of a block are still being computed: that ends with the process")
        if self._thread:
            self._forget()

    def _join(self) -> bool:
        """Wait for the scheduler's thread; False if it has not ended in time."""
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(STOP_S)
            return not self._thread.is_alive()
        return True

    # inside, on the scheduler's thread

    def _run(self) -> None:
        while not self._stop and not self._ended:
            try:
                self.run_once()
                self.pipeline.signal.wait(IDLE_S)
            except Exception as error:  # a bug: nobody may wait for ever because of it
                log.exception("the scheduler failed")
                reason = f"{type(error).__name__}: {error}"
                self._end(Unavailable(f"the pipeline ended by a bug of everface, start it again: {reason}"))

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._ended:
            return
        try:
            work()
        except PipelineLost as lost:
            self._recover(str(lost))
        except EverfaceError as error:
            self._end(error)

    def _dispatch(self) -> None:
        for s in self._all():
            self._sync(s)
            self._prepare(s)
        while self.pipeline.room() > 0:
            ready = [s for s in self._all() if s.ready(self.pipeline.depth)]
            if not ready:
                return
            for s in ready:
                s.due_s = max(s.due_s, self._due_s)
            s = min(ready, key=lambda s: (s.due_s, s.id))
            self._due_s = s.due_s
            s.due_s += s.model.format.block_s
            self.pipeline.send(s.next_block())

    def _sync(self, s: ScheduledSession) -> None:
        """Tell the stages what the session's caller did; openings and closings as far as there is room for their replies, the others later."""
        room = self.pipeline.control_room()
        if s.session.state == CLOSED:
            if not s.closing and room >= 1:
                s.closing = True
                self._send_all(s.close_messages())
            return
        cancel = s.sync()
        if not s.requested and not s.session.failed and room >= 2:
            self._send_all(s.open_messages())
        elif cancel:
            self.pipeline.send(cancel)

    def _send_all(self, messages: list[Message]) -> None:
        for message in messages:
            self.pipeline.send(message)

    def _prepare(self, s: ScheduledSession) -> None:
        """Have the conditions of the next block computed. It takes its time, so a worker thread does it where there is one."""
        s.collect()
        while block := s.next_window():
            compute = partial(s.model.prepare, block.index, block.window)
            if self._preparer:
                s.preparing(block, self._preparer.submit(compute))
                return
            conditions: Future[Tensors] = Future()
            complete(conditions, compute)
            s.preparing(block, conditions)
            s.collect()

    def _route(self, reply: Reply) -> None:
        s = self._sessions.get(reply.session)
        if isinstance(reply, Closed):
            if s is not None and s.session.state == CLOSED:
                with self._lock:
                    del self._sessions[reply.session]
        elif s is not None:
            s.accept(reply)

    def _recover(self, reason: str) -> None:
        """Tell every session, bring the stages back, open the sessions again."""
        self.recovering, began_s = True, self.now()
        for s in self._all():
            s.pause(reason)
        while True:
            try:
                restarted = self.pipeline.recover()
                with self._lock:
                    self._sessions = {n: s for n, s in self._sessions.items() if s.session.state != CLOSED}
                for s in self._all():
                    s.lost()
                break
            except PipelineLost as lost:
                reason = str(lost)
            except EverfaceError as error:
                self._end(error)
                return
        self.recovering = False
        self.recoveries.append((reason, self.now() - began_s))
        self.pipeline.signal.set()
        log.warning("recovered in %.2f s, stages restarted: %s", self.now() - began_s, ", ".join(restarted) or "none")

    def _end(self, error: EverfaceError) -> None:
        with self._lock:
            self._ended = self._ended or error
        for s in self._all():
            s.session.fail(error)

    def _all(self) -> list[ScheduledSession]:
        with self._lock:
            return list(self._sessions.values())
