"""Every stage of five in turn is killed, stopped, made to throw, to return NaN and to run out of memory, while a caller streams.

Run with -s for a table of the cost.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from tests.runtime import toy
from tests.runtime.cluster.toy_pipeline import STEPS, assert_gone, start_processes, wait_idle, worker_pids

from everface.runtime.cluster.process_pipeline import ProcessPipeline
from everface.runtime.cluster.watchdog import HANG_S
from everface.runtime.events import Recovered, Recovering, SegmentEnd, VideoBlock
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session

BLOCK_S = 0.03  # a role's work, by sleeping: the block period of five stages that do nothing else
BLOCKS, FAULT_AT = 60, 30
ROLES = [role.name for role in toy.roles_of(STEPS)]
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
FAULTS = (*SIGNALS, "throw", "nan", "memory")
REPORT_S = {"kill": 1.0, "stop": HANG_S + 1.0}  # from the fault to the event; the limit is 1 s after it was found


@dataclass
class Cost:
    """What one fault cost, in seconds from the fault."""

    role: str
    fault: str
    reported_s: float
    resumed_s: float
    recomputed: int

    def line(self) -> str:
        times = f"reported {1e3 * self.reported_s:6.0f} ms  resumed {1e3 * self.resumed_s:6.0f} ms"
        return f"{self.fault:<7} {self.role:<7} {times}  recomputed {self.recomputed}"


@pytest.fixture(scope="module")
def pipeline() -> Iterator[ProcessPipeline]:
    with start_processes(5, sleep_s=BLOCK_S) as pipeline:
        yield pipeline


def stream(session: Session, strike: Callable[[], float]) -> tuple[list[VideoBlock], float, float, Recovered]:
    """Push and poll, `strike` at block FAULT_AT. Returns the blocks, seconds to Recovering and to Recovered, and the latter."""
    pcm, at, blocks = toy.speech(BLOCKS * 0.48 - 0.1), 0, []
    struck_s = reported_s = resumed_s = 0.0
    recovered = None
    end_s = time.monotonic() + 60
    while sum(b.frames_THW3.shape[0] for b in blocks) < 12 * BLOCKS - 3:
        assert time.monotonic() < end_s, "the stream did not end"
        if at < len(pcm):
            at += 8000 * session.push_audio(pcm[at : at + 8000])
            if at >= len(pcm):
                session.end_segment()
        session.wait(0.005)
        fresh = session.poll()
        blocks += fresh
        if not struck_s and len(blocks) >= FAULT_AT:
            struck_s = strike()
        for event in session.events():
            if isinstance(event, Recovering):
                assert not reported_s
                reported_s = time.monotonic()
            elif isinstance(event, Recovered):
                recovered, resumed_s = event, time.monotonic()
            else:
                assert isinstance(event, SegmentEnd) and not event.interrupted
    assert recovered and struck_s
    return blocks, reported_s - struck_s, resumed_s - struck_s, recovered


@pytest.mark.parametrize("fault", [pytest.param(f, marks=[pytest.mark.long] if f != "kill" else []) for f in FAULTS])
def test_every_stage_in_turn(pipeline: ProcessPipeline, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    costs = []
    for rank, role in enumerate(ROLES):
        before = pipeline.processes
        params = {} if fault in SIGNALS else {"fault": fault, "fail_role": role, "fail_at": FAULT_AT + 3}
        scheduler = Scheduler(pipeline)
        session = toy.open_at(scheduler, params=params).wait_open()

        def strike(rank: int = rank, before: list[int] = before) -> float:
            if fault in SIGNALS:
                os.kill(before[rank], SIGNALS[fault])
            return time.monotonic()

        with session:
            blocks, reported_s, resumed_s, recovered = stream(session, strike)
        assert [b.index for b in blocks] == list(range(BLOCKS))  # nothing lost, doubled or out of order
        assert [b.pts for b in blocks] == [7680 * i for i in range(BLOCKS)]
        after = pipeline.processes
        changed = [a != b for a, b in zip(before, after)]
        assert changed == [fault in SIGNALS and r == rank for r in range(len(ROLES))]  # the others kept their roles
        assert_gone([pid for pid, new in zip(before, changed) if new])
        assert reported_s <= REPORT_S.get(fault, 1.0)
        assert recovered.recomputed <= 3 + pipeline.depth
        costs.append(Cost(role, fault, reported_s, resumed_s, recovered.recomputed))
        pipeline.supervisor.loss_times_s.clear()
        wait_idle(scheduler)
        scheduler.detach()  # the pipeline serves the next scheduler
    with capsys.disabled():
        print("", *(cost.line() for cost in costs), sep="\n")
    assert sorted(worker_pids()) == sorted(pipeline.processes)


def test_two_stages_at_once(pipeline: ProcessPipeline) -> None:
    with closing(Scheduler(pipeline)) as scheduler:
        first, second = (toy.open_at(scheduler).wait_open() for _ in range(2))
        first.push_audio(toy.speech(4.8))
        second.push_audio(toy.speech(4.8))
        for pid in pipeline.processes[1:3]:
            os.kill(pid, signal.SIGKILL)
        for session in (first, second):
            session.end_segment()
            assert [b.index for b in session.frames()] == list(range(10))
            assert any(isinstance(e, Recovering) for e in session.events())
