"""A model of two roles at 16 fps runs on every placement, with equal bits, and through the loss of a stage."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing

import pytest
import torch
from tests.runtime.two_roles import MODEL, ROLES, TwoRolesSession

from everface.core.config import Deployment
from everface.runtime.cluster.process_pipeline import ProcessPipeline
from everface.runtime.events import Recovered, Recovering, SegmentEnd
from everface.runtime.planning.placement import place
from everface.runtime.registry import load_model, path_of, register
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session
from everface.runtime.start import start_pipeline

AUDIO_S = torch.randn(16_000 * 12, generator=torch.Generator().manual_seed(3))  # 192 frames: 9 + 15 x 12 + 3


def start(placement: str, sleep_s: float = 0.0) -> Scheduler:
    deployment = Deployment(placement, threads=1)
    return Scheduler(start_pipeline(place(ROLES, placement), path_of("two-roles"), {"sleep_s": sleep_s}, deployment))


def play(scheduler: Scheduler) -> tuple[torch.Tensor, list[int], Session]:
    session, blocks = scheduler.open_session(TwoRolesSession()).wait_open(), []
    for piece in AUDIO_S.split(5000):
        while not session.push_audio(piece):
            session.wait(0.1)
            blocks += session.poll()
    session.end_segment()
    blocks += session.frames()
    return torch.cat([b.frames_THW3 for b in blocks]), [b.pts for b in blocks], session


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    with closing(start("inline")) as scheduler:
        frames, pts, _ = play(scheduler)
    assert len(frames) == 192 and pts[:3] == [0, 9000, 21_000]
    return frames


@pytest.mark.parametrize("placement", ["1", "2"])
def test_every_placement_has_equal_bits(reference: torch.Tensor, placement: str) -> None:
    with closing(start(placement)) as scheduler:
        frames, _, session = play(scheduler)
        assert torch.equal(frames, reference)
        assert session.events() == [SegmentEnd(0, 0, len(AUDIO_S), len(AUDIO_S), interrupted=False)]


def test_a_killed_stage_is_replaced_and_the_bits_stay(reference: torch.Tensor) -> None:
    with closing(start("2", sleep_s=0.05)) as scheduler:
        pipeline = scheduler.pipeline
        assert isinstance(pipeline, ProcessPipeline)
        session = scheduler.open_session(TwoRolesSession(), buffer_s=20.0).wait_open()
        session.push_audio(AUDIO_S)
        session.end_segment()
        blocks = []
        deadline_s = time.monotonic() + 60
        while len(blocks) < 4 and time.monotonic() < deadline_s:
            session.wait(0.1)
            blocks += session.poll()
        os.kill(pipeline.processes[0], signal.SIGKILL)
        blocks += session.frames()
        assert torch.equal(torch.cat([b.frames_THW3 for b in blocks]), reference)
        assert [type(e) for e in session.events()] == [Recovering, Recovered, SegmentEnd]


def test_a_name_means_one_model() -> None:
    register("two-roles", MODEL)
    with pytest.raises(ValueError, match="registered already"):
        register("two-roles", "elsewhere:Model")
    assert load_model(MODEL).build_role("paint", {}) is not None
