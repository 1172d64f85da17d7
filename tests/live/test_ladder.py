"""The ladder of a session on a slow machine: when it moves (on virtual time), and what a slow model's session gives out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tests.live.faces import read_sync
from tests.live.test_contract import audio_of, tone, video
from tests.runtime import toy

from everface.core.config import Deployment
from everface.live import ladder as ladder_module
from everface.live.events import LiveEvent, LiveSegmentEnd, QualityChange, Underrun, VideoFrame
from everface.live.ladder import MOST_UP_S, UP_S, WINDOW_S, Ladder
from everface.live.model_feed import ModelFeed
from everface.live.session import LiveSession
from everface.runtime.messages import Block, Tensors
from everface.runtime.planning.placement import place
from everface.runtime.registry import register
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline

FRAME_S = 0.04


class Machine:
    """Frames of a cadence on virtual time. At level n it keeps up if its speed is at least `needs[n]`."""

    def __init__(self, *needs: float) -> None:
        self.needs, self.now_s, self.ladder = needs, 0.0, Ladder(len(needs), 25)
        self.moves: list[tuple[float, int]] = []

    def run(self, seconds: float, speed: float) -> int:
        """Returns the level at its end."""
        debt = 0.0
        for _ in range(round(seconds / FRAME_S)):
            self.now_s += FRAME_S
            debt += max(0.0, 1 - speed / self.needs[self.ladder.level])
            late, debt = debt >= 1, debt % 1
            if self.ladder.observe(self.now_s, late, settled=True):
                self.moves.append((self.now_s, self.ladder.level))
        return self.ladder.level


def test_it_goes_down_until_it_keeps_up_and_up_again() -> None:
    machine = Machine(1.0, 0.75, 0.5, 0.33)
    assert machine.run(20, 1.2) == 0 and not machine.moves
    assert machine.run(9, 0.55) == 2
    assert [level for _, level in machine.moves] == [1, 2] and machine.moves[1][0] < 20 + 3 * WINDOW_S
    assert machine.run(4 * UP_S, 1.2) == 0
    assert [level for _, level in machine.moves] == [1, 2, 1, 0]


def test_the_lowest_level_stays() -> None:
    machine = Machine(1.0, 0.75, 0.5)
    assert machine.run(60, 0.1) == 2 and len(machine.moves) == 2


def test_it_does_not_swing() -> None:
    """A machine that keeps up at level 1 and not at 0: trials become rare."""
    machine = Machine(1.0, 0.75, 0.5)
    machine.run(1800, 0.8)
    trials = [at_s for at_s, level in machine.moves if level == 0]
    assert len(trials) <= 3 + 1800 / MOST_UP_S and {level for _, level in machine.moves} == {0, 1}
    assert all(b - a >= 0.9 * MOST_UP_S for a, b in itertools.pairwise(trials[6:]))


def test_a_short_stall_changes_nothing() -> None:
    machine = Machine(1.0, 0.75)
    for _ in range(20):
        machine.run(0.3, 0.0)
        machine.run(3.0, 1.0)
    assert not machine.moves


def test_frames_made_before_the_change_are_not_held_against_it() -> None:
    ladder = Ladder(3, 25)
    for frame in range(100):
        ladder.observe(frame * FRAME_S, True, settled=False)
    assert ladder.level == 0


SPEED = {"sleep_s": 0.0}  # of each of two steps and the decoder
FORWARDS = "forwards"


class SlowRole(toy.ToyRole):
    """Takes its time; with few forwards the second step takes none. In this process, so that a test can change the speed."""

    few = False

    def run(self, block: Block) -> Block:
        self.few = len(block.condition[FORWARDS]) == 1 if FORWARDS in block.condition else self.few
        time.sleep(SPEED["sleep_s"] if self.name == "step0" or not self.few else 0.0)
        return super().run(block)


class SlowModel:
    @staticmethod
    def build_role(name: str, spec: dict[str, Any]) -> Any:
        return toy.ToyDecoder(name, spec) if name == toy.LAST else SlowRole(name, spec)


class SlowSession(toy.ToySession):
    def change(self, *, forwards: int) -> Tensors:  # type: ignore[override]  # each session has keywords of its own
        return {FORWARDS: torch.zeros(forwards)}


register("slow", "tests.live.test_ladder:SlowModel")


@contextmanager
def slow(
    sleep_s: float, cheaper: tuple[dict[str, Any], ...] = ({"forwards": 2}, {"forwards": 1}), lookahead_samples: int = 0, **options: Any
) -> Iterator[LiveSession]:
    SPEED["sleep_s"] = sleep_s
    pipeline = start_pipeline(place(toy.roles_of(2), "inline"), "tests.live.test_ladder:SlowModel", toy.SPEC, Deployment())
    scheduler = Scheduler(pipeline)
    try:
        with LiveSession(scheduler.open_session(SlowSession(lookahead_samples=lookahead_samples)).wait_open(), cheaper=cheaper, **options) as session:
            yield session
    finally:
        scheduler.close()


def changes(events: list[LiveEvent]) -> list[QualityChange]:
    return [e for e in events if isinstance(e, QualityChange)]


def pairs_agree(events: list[LiveEvent]) -> None:
    """Every frame but those of an underrun has its audio, of the same place; places follow each other without a hole."""
    media = [e for e in events if not isinstance(e, QualityChange | LiveSegmentEnd)]
    shown = [(a, b) for a, b in itertools.pairwise(media) if isinstance(a, VideoFrame) and not isinstance(b, VideoFrame) and hasattr(b, "samples_SC")]
    assert all(a.pts == b.pts for a, b in shown)  # type: ignore[union-attr]  # they are frames
    places = [e.pts for e in audio_of(events)]
    assert places == [places[0] + 640 * i for i in range(len(places))]


def test_step_one_is_the_cheaper_sampler_and_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_module, "UP_S", 5.0)
    with slow(0.3) as session:  # 0.6 s for a block of 0.48 s, 0.3 s with one forward
        session._ladder._up_s = 5.0
        events = read_sync(session, lambda events: len(changes(events)) == 1, 30.0)
        after = read_sync(session, lambda events: len(video(events)) >= 60)
        assert not changes(after) and session.stats().level == 1
        assert sum(e.held for e in video(after[-60:])) == 0  # it keeps up now
        SPEED["sleep_s"] = 0.05
        back = read_sync(session, lambda events: len(changes(events)) == 1, 30.0)
        stats = session.stats()
    assert [(e.level, e.what) for e in changes(events) + changes(back)] == [(1, "forwards 1"), (0, "forwards 2")]
    assert (stats.level, stats.level_changes, stats.repeated_frames) == (0, 2, 0)
    pairs_agree([*events, *after, *back])


@pytest.mark.long
def test_step_two_shows_frames_longer_with_the_callers_audio_at_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_module, "UP_S", 1000.0)
    speech = tone(24_000, 12.0)
    with slow(0.35, cheaper=()) as session:  # 0.7 s a block: as fast as needed only with every frame shown twice
        events = read_sync(session, lambda events: len(changes(events)) == 1, 30.0)
        at = 0
        while at < len(speech):  # as fast as it is taken
            at += session.push_audio(speech[at:], 24_000, timeout_s=0.05)
            while (event := session.read(0.0)) is not None:
                events.append(event)
        session.end_segment()
        events += read_sync(session, lambda events: any(isinstance(e, LiveSegmentEnd) for e in events), 40.0)
        stats = session.stats()
    assert [e.level for e in changes(events)] == [1] and "each frame shown for 2" in changes(events)[0].what
    pairs_agree(events)
    speaking = [e for e in audio_of(events) if e.rate_hz == 24_000 and len(e.samples_SC)]
    back = np.concatenate([e.samples_SC[:, 0] for e in speaking])
    begin = int(np.flatnonzero(back)[0]) - 1  # the first sample of the tone is 0
    assert np.array_equal(back[begin : begin + len(speech)], speech)  # all of it, once, in order
    spoken = [e for e in video(events) if not e.idle]
    assert stats.repeated_frames >= len(spoken) * 0.45
    images = [e.image_HW3.tobytes() for e in spoken if not (e.held and e.image_HW3 is None)]
    assert len(set(images)) <= 0.6 * len(images)
    (end,) = [e for e in events if isinstance(e, LiveSegmentEnd)]
    assert end.shown_s == end.pushed_s == pytest.approx(12.0)


def test_frames_held_after_an_interruption_are_no_underrun_and_not_held_against_the_machine() -> None:
    with slow(0.18) as session:  # 0.54 s for a block of 0.48 s, two at a time: it keeps up, but a new turn waits for its first block
        events: list[LiveEvent] = []
        for _ in range(4):
            events += read_sync(session, lambda events: len(video(events)) >= 25)
            session.interrupt()
        events += read_sync(session, lambda events: len(video(events)) >= 25)
        stats = session.stats()
    assert stats.refill_frames >= 3 * 7 and stats.level_changes == 0
    assert stats.underruns == sum(isinstance(e, Underrun) for e in events) <= 1  # the first block of all takes longer than was thought


def test_idle_motion_goes_on_after_an_interruption_where_frames_are_shown_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block takes twice the silence there."""
    with slow(0.35, cheaper=()) as session:
        read_sync(session, lambda events: len(changes(events)) == 1, 30.0)
        monkeypatch.setattr(ladder_module.Ladder, "observe", lambda *_: False)  # a stall of the machine would take it one level further
        SPEED["sleep_s"] = 0.0
        session.interrupt()
        events = read_sync(session, lambda events: sum(not e.held for e in video(events)) >= 60, 20.0)
        assert session.stats().level == 1
    assert sum(not e.held for e in video(events)) >= 60


def test_the_picture_fades_over_an_interruption_and_does_not_jump() -> None:
    with slow(0.15) as session:
        session.push_audio(tone(16_000, 2.0))
        read_sync(session, lambda events: any(not e.idle for e in video(events)))
        session.interrupt()
        after = video(read_sync(session, lambda events: sum(not e.held for e in video(events)) >= 12))
    new = next(n for n, e in enumerate(after) if not e.held)
    steps = [int(np.abs(b.image_HW3.astype(np.int16) - a.image_HW3).max()) for a, b in itertools.pairwise(after)]
    assert new > 2 and not any(steps[: new - 1]) and 0 < steps[new - 1] <= 255 / 9 + 1
    assert all(e.pts >= after[new].pts for e in after)


def test_a_model_that_looks_far_ahead_stays_alive() -> None:
    """Idle silence is pushed until a block has all that it looks ahead to."""
    with slow(0.0, lookahead_samples=15_360) as session:
        events = read_sync(session, lambda events: len(video(events)) >= 40)
        session.push_audio(tone(16_000, 1.0))
        session.end_segment()
        events += read_sync(session, lambda events: any(isinstance(e, LiveSegmentEnd) for e in events))
        stats = session.stats()
    places = [e.pts for e in video(events) if not e.held]
    assert places == [640 * i for i in range(len(places))] and stats.level == 0
    assert sum(not e.idle for e in video(events)) in (25, 26)  # a second of speech, which may begin within a frame


def test_an_unpaced_session_never_lowers_its_quality() -> None:
    with slow(0.3, idle=False, paced=False) as session:
        session.push_audio(tone(16_000, 3.0))
        session.end_segment()
        events = read_sync(session, lambda events: any(isinstance(e, LiveSegmentEnd) for e in events))
    assert not changes(events) and len(video(events)) == 75


class Recorder:
    """Stands for a session of the runtime: keeps what the model would get."""

    def __init__(self, room: int = 10**6) -> None:
        self.format, self.turn, self.accepted, self.audio_S, self._room = toy.ToySession().format, 0, 0, torch.zeros(0), room

    def room(self) -> int:
        return self._room

    def push_audio(self, audio_S: torch.Tensor) -> bool:
        self.audio_S, self.accepted = torch.cat([self.audio_S, audio_S]), self.accepted + audio_S.numel()
        return True


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("piece", [100, 640, 5000])
def test_a_factor_begins_with_a_block_and_ends_with_one(factor: int, piece: int) -> None:
    session = Recorder()
    feed = ModelFeed(session)  # type: ignore[arg-type]  # it has what a feed uses
    audio_S = torch.randn(7680 * 10, generator=torch.Generator().manual_seed(0))
    pieces = audio_S.split(piece)
    for number, part_S in enumerate(pieces):
        feed.factor = factor if len(pieces) // 10 < number < len(pieces) // 2 else 1
        feed.add(part_S)
        feed.push(None)
        assert feed.end == sum(p.numel() for p in pieces[: number + 1])
    feed.pad()
    feed.push(None)
    assert feed.is_short and feed.accepted == feed.complete and session.accepted % 7680 == 0
    frames, where = session.accepted // 640, 0
    for frame in range(frames):
        pts, count = feed.place(frame * 640)
        assert pts == where and count == (factor if 12 <= frame < 12 * 4 and count > 1 else 1)
        if count == 1 and pts + 640 <= len(audio_S):
            assert torch.equal(session.audio_S[frame * 640 : (frame + 1) * 640], audio_S[pts : pts + 640])
        elif pts + 640 * count <= len(audio_S):  # the middle of what it stands for, behind the fade
            first = pts + (count - 1) * 320
            assert torch.equal(session.audio_S[frame * 640 + 80 : (frame + 1) * 640], audio_S[first + 80 : first + 640])
        where += 640 * count
    assert where == feed.accepted
