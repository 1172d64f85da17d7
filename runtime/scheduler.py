"""Shares one pipeline among sessions: whose block goes next, whose answer came, and what to do when a stage is lost.

The next block is that of the session whose turn is due first. A session's turn comes one block's length of video after its last one, but
never earlier than the turns of those it has kept waiting: who needs less than an equal share is served at once, the rest is shared
equally, and who joins late owes nothing and is owed nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from everface.core.block import CloseSession
from everface.core.errors import EverfaceError, Unavailable
from everface.core.log import log
from everface.runtime.pipeline import Lost, Pipeline
from everface.runtime.session import CLOSED, OPENING, Session
from everface.runtime.stage import Closed, Cancel, Message

NEVER = 1 << 60  # as an revision: nothing of the session is wanted until it is opened again
IDLE_S = 1.0  # the desk's thread looks around so often even if nobody wakes it


class Desk:
    """With `threaded`, one thread of its own does all the work; else whoever calls a session's poll or frames does it."""

    def __init__(self, pipeline: Pipeline, limit: int = 4, *, threaded: bool = True, now: Callable[[], float] = time.monotonic):
        self.pipeline, self.limit, self.threaded, self.now = pipeline, limit, threaded, now
        self.recoveries: deque[tuple[str, float]] = deque(maxlen=100)  # what was lost, and the seconds until the stages were back
        self._sessions: dict[int, Session] = {}  # open, and closed ones whose last answers are still to come
        self._asked: deque[tuple[Session, str]] = deque()  # at most two a session: open, close
        self._lock = threading.Lock()
        self._opened = 0
        self._turn_s = 0.0  # the turn served last, in seconds of video
        self._ended: EverfaceError | None = None
        self._closing = self._stop = self._busy = False
        self._thread = threading.Thread(target=self._run, name="everface desk", daemon=True)
        if threaded:
            self._thread.start()

    @property
    def depth(self) -> int:
        return self.pipeline.depth

    @property
    def sessions(self) -> int:
        """Open ones."""
        with self._lock:
            return sum(s.state != CLOSED for s in self._sessions.values())

    # for sessions

    def open(self, session: Session) -> int:
        """Take a session in; answers its number. Unavailable if there are too many, or the desk is closed."""
        with self._lock:
            if self._ended or self._closing:
                raise self._ended or Unavailable("the pipeline is closed: start another")
            if sum(s.state != CLOSED for s in self._sessions.values()) >= self.limit:
                raise Unavailable(f"this pipeline serves {self.limit} sessions already: close one, or allow more")
            self._opened += 1
            self._sessions[self._opened] = session
            session.due_s = self._turn_s
            self._asked.append((session, "open"))
            session.id = self._opened
        self.wake()
        return session.id

    def leave(self, session: Session) -> None:
        with self._lock:
            self._asked.append((session, "close"))
        self.wake()

    def tell(self, notice: Cancel) -> None:
        """Interruptions do not wait for their turn."""
        with contextlib.suppress(Lost, EverfaceError):  # then everything in flight is gone anyway
            self.pipeline.put(notice)
        self.wake()

    def wake(self) -> None:
        """There is something to do: a session opened or closed, has a block ready, or its viewer took some."""
        if self.threaded:
            self.pipeline.wake()
        else:
            self._act(lambda: None)

    def pump(self, timeout_s: float) -> None:
        """Do one turn, unless the desk's thread does them."""
        if not self.threaded:
            self.turn(timeout_s)

    # the work

    def turn(self, timeout_s: float) -> None:
        """Open and close what was asked for, feed the pipeline, take the answers that are there, waiting for the first; feed again."""

        def take() -> None:
            wait_s = timeout_s
            while (answer := self.pipeline.take(wait_s)) is not None:
                self._route(answer)
                wait_s = 0.0
            self._feed()

        self._act(take)

    def _act(self, then: Callable[[], None]) -> None:
        if self._ended or self._busy:  # it may come from within a turn
            return
        self._busy = True
        try:
            self._obey()
            self._feed()
            then()
        except Lost as lost:
            self._recover(str(lost))
        except EverfaceError as error:
            self._end(error)
        finally:
            self._busy = False

    def close(self, drain_s: float = 0.0) -> None:
        """Admit nobody, give viewers `drain_s` to close their sessions, then end what is left and the pipeline. May be called twice."""
        self.abandon(drain_s)
        self.pipeline.close()

    def abandon(self, drain_s: float = 0.0) -> None:
        """As `close`, but leave the pipeline to another desk."""
        end_s = time.monotonic() + drain_s
        self._closing = True
        while self.sessions and time.monotonic() < end_s:
            time.sleep(0.01)
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.close()
        self._stop = True
        self.pipeline.wake()
        if self.threaded and self._thread is not threading.current_thread():
            self._thread.join()
        self._end(Unavailable("the pipeline is closed: start another"))

    def _run(self) -> None:
        while not self._stop:
            try:
                self.turn(IDLE_S)
                if self._ended:
                    return
            except Exception as error:  # a bug: nobody may wait for ever because of it
                log.exception("the desk failed")
                self._end(
                    Unavailable(f"the pipeline ended by a bug of everface, start it again: {type(error).__name__}: {error}")
                )
                return

    def _obey(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    return
                session, what = self._asked.popleft()
            if what == "open":
                if session.state == OPENING:
                    self.pipeline.put(session.opening())
            else:
                self.pipeline.put(Cancel(session.id, NEVER))
                self.pipeline.put(CloseSession(session.id))

    def _feed(self) -> None:
        while self.pipeline.room() > 0:
            with self._lock:
                sessions = list(self._sessions.values())
            ready = [s for s in sessions if s.ready()]
            if not ready:
                return
            for s in ready:
                s.due_s = max(s.due_s, self._turn_s)
            session = min(ready, key=lambda s: (s.due_s, s.id))
            block = session.emit()
            if block is None:
                continue
            self._turn_s = session.due_s
            session.due_s += session.block_s
            self.pipeline.put(block)

    def _route(self, answer: Message) -> None:
        assert hasattr(answer, "session")
        number: int = answer.session  # type: ignore[union-attr]
        with self._lock:
            session = self._sessions.get(number)
            if isinstance(answer, Closed):
                if session is not None and session.state == CLOSED:
                    del self._sessions[number]
                return
        if session is not None and session.accept(answer):  # type: ignore[arg-type]
            for message in (Cancel(number, NEVER), CloseSession(number), session.opening()):
                self.pipeline.put(message)

    def _recover(self, reason: str) -> None:
        """Tell every session, bring the stages back, open the sessions again."""
        began_s = self.now()
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.pause(reason)
        while True:
            try:
                begun = self.pipeline.recover()
                with self._lock:
                    self._sessions = {n: s for n, s in self._sessions.items() if s.state != CLOSED}
                    self._asked = deque((s, what) for s, what in self._asked if what == "open" and s.state == OPENING)
                    asked = {s.id for s, _ in self._asked}
                    again = [s for n, s in self._sessions.items() if n not in asked]
                for session in again:
                    self.pipeline.put(session.resume())
                break
            except Lost as lost:
                reason = str(lost)
            except EverfaceError as error:
                self._end(error)
                return
        self.recoveries.append((reason, self.now() - began_s))
        log.warning("recovered in %.2f s, begun anew: %s", self.now() - began_s, ", ".join(begun) or "none")

    def _end(self, error: EverfaceError) -> None:
        with self._lock:
            self._ended = self._ended or error
            sessions = list(self._sessions.values())
        for session in sessions:
            session.fail(error)
