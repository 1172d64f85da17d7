"""Pipelines of toy stages, and whether their processes are gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil
from tests.runtime import toy

from everface.core.config import Deployment
from everface.runtime.cluster.process_pipeline import ProcessPipeline
from everface.runtime.pipeline import Pipeline
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline

STEPS = 4


def worker_pids() -> list[int]:
    """Stages that are children of this process, and children that ended without being waited for. Other tests have children of other kinds."""
    found: list[int] = []
    for child in psutil.Process().children():
        try:
            found += [child.pid] if "everface stage" in " ".join(child.cmdline()) else []
        except psutil.ZombieProcess:
            found.append(child.pid)
    return found


def start_on(placement: str, steps: int = STEPS, sleep_s: float = 0.0) -> Pipeline:
    """`sleep_s`: a role's work on one block, besides its arithmetic."""
    spec, deployment = {**toy.SPEC, "sleep_s": sleep_s}, Deployment(placement, threads=1, timeout_s=60.0)
    return start_pipeline(place(toy.roles_of(steps), placement), toy.MODEL, spec, deployment)


def start_processes(count: int, sleep_s: float = 0.0) -> ProcessPipeline:
    pipeline = start_on(str(count), sleep_s=sleep_s)
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


def drain(pipeline: Pipeline) -> None:
    """Run the toy scheduler until the stages hold nothing of its closed sessions, so that another may use the pipeline."""
    scheduler = toy.scheduler_of(pipeline)
    wait_idle(scheduler, lambda: toy.step(scheduler))


def wait_idle(scheduler: Scheduler, step: Callable[[], None] = lambda: time.sleep(0.01)) -> None:
    """Until the stages hold nothing of the scheduler's closed sessions."""
    end_s = time.monotonic() + 30
    while scheduler.busy:
        assert time.monotonic() < end_s, "a session was not closed on every stage"
        step()
