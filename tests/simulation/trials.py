"""Viewers, faults and invariants on virtual time: `everface simulate --faults` runs one trial a seed and prints the seeds that fail.

A trial is some seconds of a few viewers who speak, pause, interrupt, leave and come back, on a pipeline whose stages are killed, hang,
slow down, throw or give values that are not finite. Whatever happens, these hold:

    order       pts rise, without a hole inside an revision; no frame of an older revision after an interruption
    sound       every frame shows the sound of its own pts; every accepted sample is shown once or reported as dropped
    results     one Segment for every revision that had sound
    bounds      slots of channels, blocks in flight, finished blocks, waiting sound
    liveness    whoever ended a segment and polls gets all of it, or is told why not
    baseline    after all have left, no stage, desk or pipeline holds anything of them
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field

import torch

from everface.runtime.messages import Block, CloseSession, OpenSession
from everface.core.config import SAMPLES_PER_FRAME
from everface.core.errors import Unavailable
from everface.core.log import log
from everface.runtime.scheduler import Desk
from everface.runtime.events import FrameBlock, Segment
from everface.runtime.planning.placement import DECODE, roles_of
from everface.runtime.session import FINISHED, Session
from everface.runtime.stage import Message
from tests.simulation.virtual_pipeline import VirtualPipeline, World

SPEAK_S = 6.0  # viewers begin nothing new after it
END_S = 120.0  # of virtual time: by then everything must have come out
BLOCK = 12 * SAMPLES_PER_FRAME


class ChannelError(AssertionError):
    """An invariant that does not hold."""


class Counter:
    """A role that knows no arithmetic: it carries the number of a block's sound along, fails when told to, and sees that order holds."""

    def __init__(self, name: str, faults: dict[tuple[int, int, str], str]):
        self.name, self.faults = name, faults
        self.last: dict[int, int] = {}

    def open(self, opening: OpenSession) -> None:
        if opening.session in self.last:
            raise ChannelError(f"{self.name}: session {opening.session} opened twice")
        self.last[opening.session] = -1

    def run(self, block: Block) -> Block:
        if block.index <= self.last[block.session]:
            raise ChannelError(f"{self.name}: block {block.index} came after {self.last[block.session]}")
        self.last[block.session] = block.index
        fault = self.faults.pop((block.session, block.index, self.name), "")
        if fault == "throw":
            raise ArithmeticError("trouble")
        condition = dict(block.condition)
        if fault == "nan":
            condition["finite"] = BAD
        if self.name == DECODE:
            clean = {"clean": block.x} if block.index == 0 else {}
            frames = FRAMES[int(condition["sound"])]
            kept = {"finite": condition["finite"]} if "finite" in condition else {}
            return Block(block.session, block.revision, block.index, block.pts, block.frames, frames, {**kept, **clean}, block.last)
        return Block(block.session, block.revision, block.index, block.pts, block.frames, block.x, condition, block.last)

    def close(self, closing: CloseSession) -> None:
        self.last.pop(closing.session, None)


BAD, NOISE = torch.zeros(1, dtype=torch.uint8), torch.zeros(1)
FRAMES = [torch.full((12, 1), n, dtype=torch.uint8) for n in range(256)]  # as a decoder gives them, of one pixel a frame
SOUNDS = [torch.full((BLOCK,), float(n)) for n in range(256)]


@dataclass
class Viewer:
    """One viewer's life: what it did and saw. Its sound says of every block which number it bears."""

    world: World
    desk: Desk
    session: Session | None = None
    number: int = 0  # of the next block of sound
    begins: dict[int, int] = field(default_factory=dict)  # revision -> first pts of its sound
    numbers: dict[int, int] = field(default_factory=dict)  # pts -> number of the sound there
    seen: dict[int, int] = field(default_factory=dict)  # revision -> next pts due
    segments: dict[int, Segment] = field(default_factory=dict)
    spoken: set[int] = field(default_factory=set)  # revisions with sound
    told: str = ""
    gone: bool = False
    polling: bool = False

    def come(self) -> None:
        try:
            self.session = Session(self.desk, {}, self._on_cancel, lambda _: NOISE, buffer_s=4.0)
        except Unavailable:
            self.gone = True
            return
        self._act()
        self._poll()

    @staticmethod
    def _on_cancel(index: int, pcm: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sound": pcm[0]}

    def _act(self) -> None:
        """Speak, pause, end, interrupt or leave; then again some time later."""
        s, rng = self.session, self.world.rng
        if s is None or self.gone:
            return
        if self.polling:  # time passes within a poll only when the desk waits for a slot: the frames are not in hand yet
            self.world.after(0.001, self._act)
            return
        try:
            if self.world.now_s > SPEAK_S:
                self._end(s)
                return
            what = rng.random()
            if what < 0.72:
                if s._intake.ended:
                    s.interrupt()
                for _ in range(rng.randint(1, 3)):
                    pts = s.accepted
                    if not s.push(SOUNDS[self.number % 256]):
                        break
                    self.numbers[pts] = self.number % 256
                    self.spoken.add(s.revision)
                    self.begins.setdefault(s.revision, pts)
                    self.number += 1
            elif what < 0.82:
                s.end()
            elif what < 0.97:
                s.interrupt()
                if rng.random() < 0.3:
                    s.interrupt()
            else:
                self._leave()
                return
        except Unavailable as error:
            self.told = str(error)
            self._leave()
            return
        self.world.after(rng.choice((0.01, 0.1, 0.3, 0.5)), self._act)

    def _end(self, s: Session) -> None:
        s.end()

        def leave() -> None:
            if self.gone:
                return
            waits = self.spoken - self.segments.keys()
            if self.polling or (waits and self.world.now_s < END_S and not self.told):
                self.world.after(0.5, leave)
            else:
                if waits and not self.told:
                    raise ChannelError(f"session {s.id} has waited for revisions {waits} until {END_S} s")
                self._leave()

        leave()

    def _leave(self) -> None:
        if self.session is not None and not self.gone:
            self.session.close()
            self._read()
            self.gone = True
            self._settle()

    def _poll(self) -> None:
        s = self.session
        if s is None or self.gone:
            return
        try:
            self.polling = True
            for block in s.poll():
                self._see(block, s.revision)
        except Unavailable as error:
            self.told = str(error)
        finally:
            self.polling = False
        self._read()
        if len(s._finished) + len(s._ledger.flying) > FINISHED + self.desk.depth:
            raise ChannelError("finished blocks beyond their bound")
        if s.accepted - s._at > s._limit:
            raise ChannelError("waiting sound beyond its bound")
        self.world.after(self.world.rng.choice((0.02, 0.05, 0.1, 0.8)), self._poll)

    def _see(self, block: FrameBlock, revision: int) -> None:
        if block.revision != revision:
            raise ChannelError(f"a frame of revision {block.revision} came in revision {revision}")
        due = self.seen.get(block.revision, self.begins[block.revision])
        if block.pts != due:
            raise ChannelError(f"pts {block.pts} came where {due} was due")
        if int(block.frames_THW3[0, 0]) != self.numbers[block.pts]:
            raise ChannelError(f"the frame of pts {block.pts} shows other sound")
        self.seen[block.revision] = block.pts + len(block.frames_THW3) * SAMPLES_PER_FRAME

    def _read(self) -> None:
        assert self.session is not None
        for event in self.session.events():
            if isinstance(event, Segment):
                if event.revision in self.segments:
                    raise ChannelError(f"revision {event.revision} had two results")
                self.segments[event.revision] = event

    def _settle(self) -> None:
        """All accounts at the end."""
        assert self.session is not None
        if self.segments.keys() != self.spoken:
            raise ChannelError(f"results for revisions {sorted(self.segments)}, sound in {sorted(self.spoken)}")
        at = 0
        for revision in sorted(self.segments):
            segment = self.segments[revision]
            shown = self.seen.get(revision, segment.begin)
            if segment.begin != at or segment.shown != shown or not segment.begin <= segment.shown <= segment.end:
                raise ChannelError(f"{segment} after {at}, frames until {shown}")
            if not segment.interrupted and segment.shown != segment.end:
                raise ChannelError(f"{segment} is not whole")
            at = segment.end
        if at != self.session.accepted:
            raise ChannelError(f"{self.session.accepted} samples accepted, {at} accounted for")


@dataclass(frozen=True)
class Outcome:
    """What a trial was like, so that one sees that it was one."""

    blocks: int
    losses: int
    interruptions: int
    told: int  # sessions that were ended by an error
    recovering: int


def trial(seed: int) -> Outcome:
    """One seed. Raises ChannelError, or whatever a bug raises."""
    world = World(seed)
    rng = world.rng
    devices = rng.randint(1, 5)
    roles = roles_of(4)
    edges = sorted(rng.sample(range(1, 5), devices - 1))
    faults: dict[tuple[int, int, str], str] = {}
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 4)):
            faults[rng.randint(1, 4), rng.randint(0, 12), rng.choice(roles)] = rng.choice(("throw", "nan"))
    parts = [roles[a:b] for a, b in zip([0, *edges], [*edges, len(roles)])]
    mean_s = rng.choice((0.02, 0.08, 0.2))
    slow: list[float] = []  # until when everything takes three times as long

    def work_s(message: Message) -> float:
        factor = 3.0 if slow and world.now_s < slow[-1] else 1.0
        return factor * (rng.gammavariate(8.0, mean_s / 8.0) if isinstance(message, Block) else 0.01)

    pipeline = VirtualPipeline(
        world, [{n: Counter(n, faults) for n in part} for part in parts], work_s, rng.choice((0.2, 1.0, 4.0))
    )
    desk = Desk(pipeline, threaded=False, now=world.now)
    viewers = [Viewer(world, desk) for _ in range(rng.randint(1, 4))]
    for viewer in viewers:
        world.after(rng.uniform(0.0, 2.0), viewer.come)
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        strike = rng.choice((pipeline.kill, pipeline.hang))
        at = rng.randrange(devices)
        world.after(rng.uniform(0.0, 8.0), lambda strike=strike, at=at: strike(at))
    if rng.random() < 0.3:
        world.after(rng.uniform(0.0, 4.0), lambda: slow.append(world.now_s + 2.0))
    while not all(v.gone for v in viewers):
        desk.turn(0.0)
        if not 0 <= pipeline.in_flight <= pipeline.depth:
            raise ChannelError(f"{pipeline.in_flight} blocks in flight of {pipeline.depth}")
        world.step()
        if world.now_s > END_S + 60.0:
            raise ChannelError("the trial does not end")
    for _ in range(400):  # the last messages pass; a stage may still be lost, and found so only by its silence
        desk.turn(0.0)
        world.step()
    left = [d.name for d in pipeline.devices if list(d.stage.sessions)]
    if left or desk._sessions or pipeline.in_flight or any(r.last for d in pipeline.devices for r in d.roles.values()):
        raise ChannelError(f"left behind: stages {left}, sessions {list(desk._sessions)}, {pipeline.in_flight} in flight")
    if pipeline.most_held > 2:
        raise ChannelError(f"a channel held {pipeline.most_held} messages")
    return Outcome(
        blocks=sum(v.session.clock.frames // 12 for v in viewers if v.session),
        losses=pipeline.losses,
        interruptions=sum(s.interrupted for v in viewers for s in v.segments.values()),
        told=sum(bool(v.told) for v in viewers),
        recovering=len(desk.recoveries),
    )


def run(first: int, seeds: int) -> tuple[dict[int, str], list[int]]:
    """Trials of seeds first, first+1, ...: what failed, and the sums of what the others were like."""
    failed, sums = {}, [0] * len(Outcome.__dataclass_fields__)
    for seed in range(first, first + seeds):
        try:
            outcome = trial(seed)
            sums = [a + b for a, b in zip(sums, vars(outcome).values())]
        except Exception as error:
            failed[seed] = f"{type(error).__name__}: {error}"
    return failed, sums


def run_many(first: int, seeds: int, jobs: int) -> tuple[dict[int, str], Outcome]:
    """The same over `jobs` processes."""
    share = -(-seeds // jobs)
    parts = [(at, min(share, first + seeds - at)) for at in range(first, first + seeds, share)]
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:] = {sys.path!r}; from tests.simulation.trials import main; main(*map(int, sys.argv[1:]))",
    ]
    children = [subprocess.Popen([*command, str(at), str(n)], stdout=subprocess.PIPE, text=True) for at, n in parts]
    failed: dict[int, str] = {}
    sums = [0] * len(Outcome.__dataclass_fields__)
    try:
        for child in children:
            out, _ = child.communicate()
            if child.returncode:
                raise Unavailable(f"a process of the trials ended with exit status {child.returncode}: see above")
            part = json.loads(out)
            failed.update({int(seed): what for seed, what in part["failed"].items()})
            sums = [a + b for a, b in zip(sums, part["sums"])]
    finally:
        for child in children:
            child.kill()
            child.wait()
    return failed, Outcome(*sums)


def main(first: int, seeds: int) -> None:
    """One process of run_many: JSON on stdout."""
    torch.set_num_threads(1)
    log.setLevel("CRITICAL")  # every loss of every trial would be a stream
    failed, sums = run(first, seeds)
    print(json.dumps({"failed": failed, "sums": sums}))
