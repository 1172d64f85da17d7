"""One caller's life, and what it saw: it speaks, pauses, interrupts, changes the state, ends segments and leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulation.counter import AUDIO, CounterSession, Violation
from tests.simulation.world import World

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import Unavailable
from everface.runtime.events import SegmentEnd, VideoBlock
from everface.runtime.scheduled_session import FINISHED
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session

SPEAK_S = 6.0  # callers begin nothing new after it
END_S = 120.0  # of virtual time: by then everything must have come out
BUFFER_S = 4.0


@dataclass
class Caller:
    """Its audio says of every block which number it bears."""

    world: World
    scheduler: Scheduler
    session: Session | None = None
    number: int = 0  # of the next block of audio
    ended: bool = False  # the segment
    begins: dict[int, int] = field(default_factory=dict)  # turn -> first pts of its audio
    numbers: dict[int, int] = field(default_factory=dict)  # pts -> number of the audio there
    seen: dict[int, int] = field(default_factory=dict)  # turn -> next pts due
    segments: dict[int, SegmentEnd] = field(default_factory=dict)
    spoken: set[int] = field(default_factory=set)  # turns with audio
    failure: str = ""
    gone: bool = False

    def come(self) -> None:
        try:
            self.session = self.scheduler.open_session(CounterSession(), BUFFER_S)
        except Unavailable:
            self.gone = True
            return
        self._act()
        self._poll()

    def _act(self) -> None:
        """Speak, pause, end, interrupt or leave; then again some time later."""
        s, rng = self.session, self.world.rng
        if s is None or self.gone:
            return
        try:
            if self.world.now_s > SPEAK_S:
                self._finish(s)
                return
            what = rng.random()
            if what < 0.70:
                if self.ended:
                    self._interrupt(s)
                self._speak(s, rng.randint(1, 3))
            elif what < 0.72:
                s.change()
            elif what < 0.82:
                s.end_segment()
                self.ended = True
            elif what < 0.97:
                self._interrupt(s)
                if rng.random() < 0.3:
                    self._interrupt(s)
            else:
                self._leave()
                return
        except Unavailable as error:
            self.failure = str(error)
            self._leave()
            return
        self.world.after(rng.choice((0.01, 0.1, 0.3, 0.5)), self._act)

    def _interrupt(self, s: Session) -> None:
        s.interrupt()
        self.ended = False

    def _speak(self, s: Session, blocks: int) -> None:
        for _ in range(blocks):
            pts = s.accepted
            if not s.push_audio(AUDIO[self.number % 256]):
                return
            self.numbers[pts] = self.number % 256
            self.spoken.add(s.turn)
            self.begins.setdefault(s.turn, pts)
            self.number += 1

    def _finish(self, s: Session) -> None:
        """End the segment and leave when all of it was seen."""
        s.end_segment()

        def leave() -> None:
            if self.gone:
                return
            missing = self.spoken - self.segments.keys()
            if missing and self.world.now_s < END_S and not self.failure:
                self.world.after(0.5, leave)
            else:
                if missing and not self.failure:
                    raise Violation(f"session {s.id} has waited for turns {missing} until {END_S} s")
                self._leave()

        leave()

    def _leave(self) -> None:
        if self.session is not None and not self.gone:
            self.session.close()
            self._read()
            self.gone = True
            self._settle(self.session)

    def _poll(self) -> None:
        s = self.session
        if s is None or self.gone:
            return
        stats = s.stats()
        if stats.finished > FINISHED + self.scheduler.pipeline.depth:
            raise Violation("finished blocks beyond their bound")
        if stats.queued > BUFFER_S * SAMPLE_RATE:
            raise Violation("waiting audio beyond its bound")
        try:
            for block in s.poll():
                self._see(block, s.turn)
        except Unavailable as error:
            self.failure = str(error)
        self._read()
        self.world.after(self.world.rng.choice((0.02, 0.05, 0.1, 0.8)), self._poll)

    def _see(self, block: VideoBlock, turn: int) -> None:
        if block.turn != turn:
            raise Violation(f"a frame of turn {block.turn} came in turn {turn}")
        due = self.seen.get(block.turn, self.begins[block.turn])
        if block.pts != due:
            raise Violation(f"pts {block.pts} came where {due} was due")
        if int(block.frames_THW3[0, 0]) != self.numbers[block.pts]:
            raise Violation(f"the frame of pts {block.pts} shows other audio")
        self.seen[block.turn] = block.pts + len(block.frames_THW3) * SAMPLES_PER_FRAME

    def _read(self) -> None:
        assert self.session is not None
        for event in self.session.events():
            if isinstance(event, SegmentEnd):
                if event.turn in self.segments:
                    raise Violation(f"turn {event.turn} had two results")
                self.segments[event.turn] = event

    def _settle(self, s: Session) -> None:
        """Every accepted sample was shown once, or reported as dropped."""
        if self.segments.keys() != self.spoken:
            raise Violation(f"results for turns {sorted(self.segments)}, audio in {sorted(self.spoken)}")
        at = 0
        for turn in sorted(self.segments):
            segment = self.segments[turn]
            shown = self.seen.get(turn, segment.begin)
            if segment.begin != at or segment.shown != shown or not segment.begin <= segment.shown <= segment.end:
                raise Violation(f"{segment} after {at}, frames until {shown}")
            if not segment.interrupted and segment.shown != segment.end:
                raise Violation(f"{segment} is not whole")
            at = segment.end
        if at != s.accepted:
            raise Violation(f"{s.accepted} samples accepted, {at} accounted for")
