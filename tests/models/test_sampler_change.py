"""Another sampler within a session: from a block on, the later steps pass blocks by, and begin again when they are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.test_roles import SCHEDULE, block, denoiser, opening

from everface.avatar.avatar import Avatar
from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.models.live_avatar.names import CLEAN, FINITE, FORWARDS, not_finite
from everface.models.live_avatar.roles import StepRole
from everface.networks.transformer.schedule import Schedule
from everface.runtime.session import Session

BLOCKS = 6


def frames(model: Path, face: Path, sampler: str, at: Callable[[Session, int], None], placement: str = "inline") -> np.ndarray:
    """The blocks [BLOCKS, 12, H, W, 3] of a session; `at(session, n)` is called before the audio of block n is pushed."""
    audio_S, out = torch.randn(BLOCKS * 7680, generator=torch.Generator().manual_seed(1)) * 0.1, list[np.ndarray]()
    with Avatar(model, deployment=Deployment(placement, threads=1)) as avatar, avatar.open(face, StreamConfig(seed=3, sampler=sampler)) as session:
        for n, part_S in enumerate(audio_S.split(7680)):
            at(session, n)
            session.push_audio(part_S)
            if n == BLOCKS - 1:
                session.end_segment()
            while len(out) <= n:
                session.wait(0.2)
                out += [b.frames_THW3.numpy() for b in session.poll()]
    return np.stack(out)


def test_it_is_the_sampler_itself_from_the_next_block_on(small_model: Path, face: Path) -> None:
    def skip_at(begin: int, end: int = BLOCKS) -> Callable[[Session, int], None]:
        return lambda s, n: s.change(sampler="skip-null") if n == begin else s.change(sampler="official") if n == end else None

    official = frames(small_model, face, "official", skip_at(BLOCKS))
    skip_null = frames(small_model, face, "skip-null", lambda s, n: None)
    assert np.array_equal(frames(small_model, face, "official", skip_at(0)), skip_null)
    some = frames(small_model, face, "official", skip_at(2, 4))
    same = [np.array_equal(a, b) for a, b in zip(some, official)]
    assert same[:2] == [True, True] and not any(same[2:4])
    assert np.array_equal(frames(small_model, face, "official", skip_at(2, 4), "2"), some)


def test_a_sampler_with_more_forwards_than_steps_is_refused(small_model: Path, face: Path) -> None:
    with Avatar(small_model) as avatar, avatar.open(face, StreamConfig(sampler="skip-null")) as session:
        session.change(sampler="skip-null")
        with pytest.raises(BadInput, match="more forwards than this session's skip-null"):
            session.change(sampler="official")
        with pytest.raises(BadInput, match="unknown sampler 'fast'"):
            session.change(sampler="fast")


def test_a_step_that_is_not_wanted_passes_on_and_its_ring_begins_again() -> None:
    d = denoiser()
    steps = [StepRole(d, SCHEDULE, step) for step in range(4)]
    for role in steps:
        role.open(opening())
    runs = d.sessions[1].runs
    few, all_ = {FORWARDS: torch.zeros(3, dtype=torch.uint8)}, {FORWARDS: torch.zeros(4, dtype=torch.uint8)}
    for index, brought in enumerate([None, None, few, None, all_, None]):
        b = block(index, brought=brought)
        before = b.x
        for role in steps:
            before, b = b.x, role.run(b)
        passed = index in (2, 3)
        assert (b.x is before) == passed and len(b.condition[FINITE]) == 4 and not_finite(b.condition) is None
        assert runs == {0: index + 1, 1: index + 1, 2: index + 1, 3: [1, 2, 0, 0, 1, 2][index]}
        assert (CLEAN in b.condition) == (index == 0)
    # What comes of the third step is what the pipeline of three steps makes.
    plain = denoiser()
    three = [StepRole(plain, Schedule.for_sampler("skip-null"), step) for step in range(3)]
    for role in three:
        role.open(opening())
    other = block(0)
    mixed = block(0, session=2, brought=few)
    for role in steps:
        role.open(opening(2))
    for a, b in itertools.zip_longest(steps, three):
        mixed, other = a.run(mixed), b.run(other) if b else other
    assert torch.equal(mixed.x, other.x)
