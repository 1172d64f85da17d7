"""Pipelines of toy stages, and whether their processes are gone."""

from __future__ import annotations

import os
import time

import psutil
from tests.runtime import toy

from everface.core.config import Deployment
from everface.runtime.cluster.process_pipeline import ProcessPipeline
from everface.runtime.pipeline import Pipeline
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline

STEPS = 4


def start_on(placement: str, steps: int = STEPS, **spec: float) -> Pipeline:
    deployment = Deployment(placement, threads=1, timeout_s=60.0)
    return start_pipeline(place(toy.roles_of(steps), placement), toy.MODEL, {**toy.SPEC, **spec}, deployment)


def start_processes(count: int, **spec: float) -> ProcessPipeline:
    pipeline = start_on(str(count), **spec)
    assert isinstance(pipeline, ProcessPipeline)
    return pipeline


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE or psutil.Process(pid).ppid() == os.getpid()
    except psutil.NoSuchProcess:
        return False


def assert_gone(pids: list[int], within_s: float = 0.0) -> None:
    end_s = time.monotonic() + within_s
    while any(alive(pid) for pid in pids) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not [pid for pid in pids if alive(pid)]


def drain(scheduler: Scheduler, within_s: float = 30.0) -> None:
    """Until the stages hold nothing of the scheduler's closed sessions, so that another one may use the pipeline."""
    end_s = time.monotonic() + within_s
    while scheduler.busy:
        assert time.monotonic() < end_s, "a session was not closed on every stage"
        toy.step(scheduler)
