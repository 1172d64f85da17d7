"""Stages whose device has no memory left, or is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tests.runtime import toy
from tests.runtime.cluster.toy_pipeline import start_processes, wait_idle

from everface.core.config import Deployment
from everface.core.errors import Unavailable
from everface.runtime import inline_pipeline
from everface.runtime.cluster import supervisor
from everface.runtime.cluster.process_pipeline import ProcessPipeline
from everface.runtime.events import Recovering
from everface.runtime.inline_pipeline import InlinePipeline
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session
from everface.runtime.start import start_pipeline

SESSIONS = 100
WAIT_S = 60.0


def played(session: Session) -> list[torch.Tensor]:
    with session:
        session.push_audio(toy.speech(1.2))
        session.end_segment()
        return [block.frames_THW3 for block in session.frames()]


def processes_of(scheduler: Scheduler) -> list[int]:
    assert isinstance(scheduler.pipeline, ProcessPipeline)
    return scheduler.pipeline.processes


def wait_failure(scheduler: Scheduler) -> str:
    end_s = time.monotonic() + WAIT_S
    while scheduler.failure is None:
        assert time.monotonic() < end_s, "the pipeline did not end"
        time.sleep(0.01)
    return str(scheduler.failure)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    with closing(Scheduler(start_processes(2))) as scheduler:
        yield scheduler


def test_out_of_memory_then_a_hundred_sessions(scheduler: Scheduler) -> None:
    truth, processes = played(toy.open_at(scheduler).wait_open()), processes_of(scheduler)
    for role in ("step0", "decode"):
        with pytest.raises(Unavailable, match=f"could not be opened on {role}: OutOfMemoryError"):
            toy.open_at(scheduler, params={"refuse_role": role, "refuse_how": "memory"}).wait_open()
        session = toy.open_at(scheduler, params={"fault": "memory", "fail_role": role, "fail_at": 1}).wait_open()
        assert len(played(session)) == len(truth)
        [reason] = [event.reason for event in session.events() if isinstance(event, Recovering)]
        assert reason == f"{role} failed at block 1: OutOfMemoryError: toy memory is full"
    for _ in range(SESSIONS):
        frames = played(toy.open_at(scheduler).wait_open())
        assert len(frames) == len(truth) and all(map(torch.equal, frames, truth))
    wait_idle(scheduler)
    assert processes_of(scheduler) == processes and not scheduler.recoveries


@pytest.mark.long
def test_a_device_that_is_lost_again_and_again_ends_the_pipeline(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WITHIN_S", 600.0)
    session = toy.open_at(scheduler, params={"fault": "device", "fail_role": "step0", "fail_at": 1}).wait_open()
    with pytest.raises(Unavailable, match="4 stages were lost"):
        played(session)
    assert "4 stages were lost" in wait_failure(scheduler) and len(scheduler.recoveries) == 3
    assert "illegal memory access" in scheduler.recoveries[0][0]
    with pytest.raises(Unavailable, match="4 stages were lost"):
        toy.open_at(scheduler)


def test_an_idle_stage_finds_out_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = tmp_path / "lost"

    def synchronize(_: torch.device) -> None:
        if lost.exists():
            raise torch.AcceleratorError("CUDA error: no device is there")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(inline_pipeline, "IDLE_S", 0.02)
    pipeline = start_pipeline(place(toy.roles_of(2), "inline"), toy.MODEL, toy.SPEC, Deployment())
    assert isinstance(pipeline, InlinePipeline)
    with closing(Scheduler(pipeline)) as scheduler:
        for stage in pipeline._stages:
            stage._device = torch.device("cuda:0")
        assert len(played(toy.open_at(scheduler).wait_open())) == 3
        lost.touch()
        assert "a device was lost (AcceleratorError: CUDA error: no device is there)" in wait_failure(scheduler)
