"""Cuts: a shot continues nothing of what was before it, begins at the frame that was asked for, and knows again what was shown."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from everface import Avatar, Deployment, Session, StreamConfig
from everface.core.errors import BadInput, Unavailable
from everface.models.live_avatar.roles import dissolve
from everface.models.live_avatar.sink import SAME, ShotMemory, SinkSession, similarity
from everface.runtime.audio_buffer import AudioBuffer
from everface.runtime.messages import Params, Tensors
from everface.runtime.model import BlockFormat, Window
from everface.runtime.session import MOST_UPDATES

FRAME, CUT_AT = 640, 29  # two blocks and five frames
AUDIO_S = 0.1 * torch.randn(FRAME * 100, generator=torch.Generator().manual_seed(4))
OLD, OTHER, NEW = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in range(3))


@pytest.fixture(scope="module")
def avatar(small_model: Path) -> Iterator[Avatar]:
    with Avatar(small_model, deployment=Deployment(threads=1)) as avatar:
        yield avatar


def push(session: Session, audio_S: torch.Tensor) -> None:
    for part_S in audio_S.split(4000):
        while not session.push_audio(part_S):
            session.wait(1.0)


def frames(session: Session) -> torch.Tensor:
    session.end_segment()
    return torch.cat([block.frames_THW3 for block in session.frames()])


def play(avatar: Avatar, first: torch.Tensor, at: int = CUT_AT * FRAME, **cut: Any) -> torch.Tensor:
    """A stream that begins with the image `first`, and is cut at sample `at`, if a cut is described."""
    with avatar.open(first, StreamConfig(seed=3)) as session:
        push(session, AUDIO_S[:at])
        if cut:
            session.cut(**cut)
        push(session, AUDIO_S[at:])
        return frames(session)


@pytest.fixture(scope="module")
def two_shots(avatar: Avatar) -> torch.Tensor:
    return play(avatar, OLD, image=NEW)


def test_what_was_before_a_cut_leaves_no_trace(avatar: Avatar, two_shots: torch.Tensor) -> None:
    others = play(avatar, OTHER, image=NEW)
    assert len(others) == len(two_shots) == 100
    assert torch.equal(others[CUT_AT:], two_shots[CUT_AT:])
    assert not torch.equal(others[:CUT_AT], two_shots[:CUT_AT])


def test_it_is_at_the_frame_that_was_asked_for(avatar: Avatar, two_shots: torch.Tensor) -> None:
    uncut = play(avatar, OLD)
    assert torch.equal(uncut[:CUT_AT], two_shots[:CUT_AT])
    assert (uncut[CUT_AT:].int() - two_shots[CUT_AT:].int()).abs().float().mean((1, 2, 3)).min() > 1
    assert torch.equal(play(avatar, OLD, at=CUT_AT * FRAME + 600, image=NEW), two_shots)  # within the frame: it is the new shot's


def test_every_placement_has_the_same_bits(small_model: Path, two_shots: torch.Tensor) -> None:
    with Avatar(small_model, deployment=Deployment("2", threads=1)) as processes:
        assert torch.equal(play(processes, OLD, image=NEW), two_shots)


def test_a_killed_stage_is_replaced_within_the_same_shot(small_model: Path, two_shots: torch.Tensor) -> None:
    with Avatar(small_model, deployment=Deployment("2", threads=1)) as processes, processes.open(OLD, StreamConfig(seed=3)) as session:
        push(session, AUDIO_S[: CUT_AT * FRAME])
        session.cut(image=NEW)
        push(session, AUDIO_S[CUT_AT * FRAME :])
        seen: list[torch.Tensor] = []
        while sum(map(len, seen)) < CUT_AT + 12:
            session.wait(1.0)
            seen += [block.frames_THW3 for block in session.poll()]
        pipeline: Any = processes.scheduler and processes.scheduler.pipeline
        os.kill(pipeline.processes[0], signal.SIGKILL)
        seen.append(frames(session))
    assert torch.equal(torch.cat(seen), two_shots)


def test_an_interruption_does_not_undo_a_cut(avatar: Avatar) -> None:
    shown = []
    for first in (OLD, OTHER):
        with avatar.open(first, StreamConfig(seed=3)) as session:
            push(session, AUDIO_S[:300])
            session.cut(image=NEW)
            push(session, AUDIO_S[:300])
            session.interrupt()
            push(session, AUDIO_S[: 30 * FRAME])
            shown.append(frames(session))
    assert torch.equal(*shown)


def test_at_once_is_with_the_next_block(avatar: Avatar) -> None:
    with avatar.open(OLD, StreamConfig(seed=3)) as session:
        session.cut(image=NEW, at_once=True)
        push(session, AUDIO_S[: 24 * FRAME])
        cut = frames(session)
    with avatar.open(OTHER, StreamConfig(seed=3)) as session:
        session.cut(image=NEW, at_once=True)
        push(session, AUDIO_S[: 24 * FRAME])
        assert torch.equal(frames(session), cut)


def test_a_dissolve_leads_from_the_last_frame_to_the_new_shot(avatar: Avatar, two_shots: torch.Tensor) -> None:
    dissolved = play(avatar, OLD, image=NEW, transition="dissolve")
    expected = two_shots[CUT_AT:].clone()
    dissolve(two_shots[CUT_AT - 1], expected, 8)
    assert torch.equal(dissolved[CUT_AT:], expected) and torch.equal(dissolved[:CUT_AT], two_shots[:CUT_AT])
    distance = [(frame.int() - two_shots[CUT_AT - 1].int()).abs().float().mean() for frame in expected[:9]]
    assert distance == sorted(distance) and torch.equal(expected[8:], two_shots[CUT_AT + 8 :])


def test_what_cannot_be_cut_to_is_one_sentence(avatar: Avatar) -> None:
    with avatar.open(OLD, StreamConfig(seed=3)) as session:
        refused: tuple[tuple[dict[str, Any], str], ...] = (({"transition": "wipe"}, "one of cut, dissolve"), ({"image": torch.zeros(3, 128, 64)}, "64x128"), ({"image": 5}, "int"))
        for what, words in refused:
            with pytest.raises(BadInput, match=words):
                session.cut(**what)
        for _ in range(MOST_UPDATES):
            session.cut()
        for call in (session.cut, session.change):
            with pytest.raises(Unavailable, match="push audio first"):
                call()


def test_a_change_waits_for_the_cuts_before_it(avatar: Avatar) -> None:
    with avatar.open(OLD, StreamConfig(seed=3)) as session:
        push(session, AUDIO_S[: 24 * FRAME])
        session.cut(image=OTHER)
        session.change(image=NEW)
        push(session, AUDIO_S[24 * FRAME :])
        changed = frames(session)
    assert torch.equal(changed[:24], play(avatar, OLD)[:24])
    plain = play(avatar, OLD, at=24 * FRAME, image=OTHER)
    assert not torch.equal(changed[-12:], plain[-12:])


# the sink of each shot


def latent(seed: int) -> torch.Tensor:
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def sinks(refresh_after: int) -> SinkSession:
    """The part of a session that minds the sink, begun with latent 0."""

    class Bare(SinkSession):
        format = BlockFormat()

        def initial_state(self) -> tuple[Tensors, Params]:
            raise NotImplementedError

        def prepare(self, index: int, window: Window) -> Tensors:
            raise NotImplementedError

        def initial_x(self, index: int, retry: int) -> torch.Tensor:
            raise NotImplementedError

    return Bare(refresh_after, latent(0))


def run(session: SinkSession, first: int, last: int) -> list[torch.Tensor]:
    """The sinks that blocks first..last bring. Each is back before the next is sent; a block's clean latent is of its number."""
    brought = []
    for index in range(first, last + 1):
        update = session.update(index)
        brought += [update["sink"]] if update else []
        session.result(index, {"clean": latent(100 + index)})
    return brought


def test_a_shot_refreshes_its_sink_and_one_that_shows_the_same_takes_it_over() -> None:
    session = sinks(4)
    assert [torch.equal(sink, latent(100)) for sink in run(session, 0, 5)] == [True]
    another = session.apply({"sink": latent(1)}, 6)
    assert torch.equal(another["sink"], latent(1)) and session.depends_on(9) is None and session.depends_on(10) == 6
    assert [torch.equal(sink, latent(106)) for sink in run(session, 6, 12)] == [True]
    for first, reference, sink in ((13, 0, 100), (20, 1, 106)):
        again = session.apply({"sink": latent(reference) + 0.01 * latent(9), "motion": latent(3)}, first)
        assert torch.equal(again["sink"], latent(sink)) and torch.equal(again["motion"], latent(3))
        assert not run(session, first, first + 6)


def test_a_shot_that_was_too_short_for_a_refresh_is_not_remembered() -> None:
    session = sinks(4)
    assert not run(session, 0, 3)
    session.apply({"sink": latent(1)}, 4)
    assert torch.equal(session.apply({"sink": latent(0)}, 5)["sink"], latent(0))


def test_another_image_within_a_shot_is_not_replaced_by_the_refresh() -> None:
    session = sinks(4)
    session.apply({"sink": latent(1)}, 2)
    session.apply({"sink": latent(2)}, None)
    assert not run(session, 2, 9)


def test_the_memory_is_bounded_and_finds_the_most_similar() -> None:
    memory = ShotMemory()
    assert memory.find(latent(0)) is None
    for n in range(40):
        memory.add(latent(n), latent(1000 + n))
    near = latent(30) + 0.05 * latent(77)
    assert SAME < similarity(near, latent(30)) < 1
    found = memory.find(near)
    assert found is not None and torch.equal(found, latent(1030)) and memory.find(latent(0)) is None
    assert memory.find(latent(30) + latent(77)) is None


# windows


def test_windows_around_cuts() -> None:
    buffer = AudioBuffer(BlockFormat(lookback_samples=100, lookahead_samples=50))
    ramp_S = torch.arange(1.0, 20_001.0)
    buffer.add(ramp_S[:9000])
    assert buffer.cut() == 8960
    buffer.add(ramp_S[9000:])
    buffer.ended = True
    windows = []
    while window := buffer.take_window(len(windows), 0):
        windows.append(window)
    assert [(w.pts, w.frames, w.last) for w in windows] == [(0, 12, False), (7680, 2, False), (8960, 12, False), (16640, 6, True)]
    padded_S = torch.cat([torch.zeros(100), ramp_S, torch.zeros(10_000)])
    for window in windows:
        assert torch.equal(window.audio_S, padded_S[window.pts : window.pts + 100 + 7680 + 50])


def test_a_cut_behind_all_audio_ends_the_segment_there() -> None:
    buffer = AudioBuffer(BlockFormat())
    buffer.add(torch.ones(FRAME * 14))
    buffer.cut()
    buffer.ended = True
    windows = [buffer.take_window(0, 0), buffer.take_window(1, 0), buffer.take_window(2, 0)]
    assert [(w.frames, w.last) for w in windows if w] == [(12, False), (2, True)]
    buffer.restart()
    buffer.add(torch.ones(FRAME * 12))
    assert (window := buffer.take_window(2, 1)) is not None and window.frames == 12
