"""Whoever waits for a session is woken when it, or its scheduler, is closed from another thread; and closing takes bounded time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch
from tests.runtime import toy
from tests.runtime.cluster.toy_pipeline import assert_gone, start_on, start_processes

from everface.core.errors import Unavailable
from everface.runtime import inline_pipeline, scheduler
from everface.runtime.events import Recovering, SegmentEnd
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session

SOON_S = 2.0
HANG = {"slow_role": "step0", "slow_s": 5.0}


@pytest.fixture
def served() -> Iterator[Scheduler]:
    with closing(Scheduler(start_on("inline", steps=2))) as served:
        yield served


def later(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(0.3, act)
    thread.start()
    return thread


def timed(act: Callable[[], object]) -> float:
    began_s = time.monotonic()
    act()
    return time.monotonic() - began_s


def test_close_wakes_who_waits(served: Scheduler) -> None:
    session = toy.open_at(served).wait_open()
    later(session.close)
    assert timed(lambda: session.wait(60.0)) < SOON_S
    assert not session.wait(60.0)  # nothing to take, and nothing to wait for
    session = toy.open_at(served).wait_open()
    later(session.close)
    assert timed(lambda: list(session.frames())) < SOON_S


def test_a_session_closed_before_it_opened_is_not_open(served: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = threading.Event()
    monkeypatch.setattr(toy.ToyRole, "open", lambda *_: opening.wait(5.0))
    session = toy.open_at(served)
    later(session.close)
    with pytest.raises(Unavailable, match="was closed before it opened"):
        session.wait_open(60.0)
    other = toy.open_at(served)
    later(served.close)
    with pytest.raises(Unavailable, match="the pipeline is closed"):
        other.wait_open(60.0)
    opening.set()


@pytest.mark.parametrize("wait", ["wait", "frames", "push"])
def test_the_schedulers_close_wakes_who_waits_and_says_so(served: Scheduler, wait: str) -> None:
    """Frames that are missing are an error: a video must not seem complete."""
    session = toy.open_at(served, params={"slow_role": "decode", "slow_s": 0.05}).wait_open()
    session.push_audio(toy.speech(9.0))

    def push() -> None:
        while True:
            if not session.push_audio(toy.speech(1.0)):
                session.wait(60.0)

    later(served.close)
    waits: dict[str, Callable[[], object]] = {
        "wait": lambda: drain(session),
        "frames": lambda: list(session.frames()),
        "push": push,
    }
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="the pipeline is closed"):
        waits[wait]()
    assert time.monotonic() - began_s < SOON_S
    with pytest.raises(Unavailable, match="the pipeline is closed"):
        session.push_audio(toy.speech(0.1))
    session.close()
    assert [event.interrupted for event in session.events() if isinstance(event, SegmentEnd)] == [True]


def drain(session: Session) -> None:
    while session.wait(60.0):
        session.poll()


def test_a_complete_video_stays_complete(served: Scheduler) -> None:
    session = toy.open_at(served).wait_open()
    session.push_audio(toy.speech(1.0))
    session.end_segment()
    frames = session.frames()
    assert [len(next(frames).frames_THW3) for _ in range(3)] == [12, 12, 1]
    served.close()
    assert list(frames) == []


def test_a_role_that_hangs_does_not_hang_close(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(inline_pipeline, "STOP_S", 0.5)
    monkeypatch.setattr(scheduler, "STOP_S", 0.5)
    hung = Scheduler(start_on("inline", steps=2))
    toy.open_at(hung, params=HANG).wait_open().push_audio(toy.speech(2.0))
    time.sleep(0.3)
    assert timed(hung.close) < SOON_S and "ends with the process" in caplog.text


def test_a_block_is_left_between_two_roles(served: Scheduler) -> None:
    """Closing waits for the role that runs, not for the whole block."""
    ran: list[str] = []
    session = toy.open_at(served, params={"slow_role": "step0", "slow_s": 0.5}).wait_open()
    stage = served.pipeline._stages[0]  # type: ignore[attr-defined]  # an inline pipeline's
    run = stage.roles["step1"].run
    stage.roles["step1"].run = lambda block: (ran.append("step1"), run(block))[1]
    session.push_audio(toy.speech(0.48))
    time.sleep(0.2)
    served.close()
    assert ran == []


def test_conditions_that_take_for_ever_do_not_hang_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduler, "STOP_S", 0.5)
    go_on = threading.Event()

    def condition(index: int, audio_S: torch.Tensor) -> dict[str, torch.Tensor]:
        go_on.wait(20.0)
        return toy.condition(index, audio_S)

    hung = Scheduler(start_on("inline", steps=2))
    toy.open_at(hung, condition=condition).wait_open().push_audio(toy.speech(2.0))
    time.sleep(0.1)
    assert timed(hung.close) < SOON_S and "still being computed" in caplog.text
    go_on.set()


def test_close_while_a_lost_worker_is_replaced() -> None:
    pipeline = start_processes(2)
    pids = pipeline.processes
    busy = Scheduler(pipeline)
    session = toy.open_at(busy).wait_open()
    session.push_audio(toy.speech(9.0))
    os.kill(pids[0], signal.SIGKILL)
    while not any(isinstance(event, Recovering) for event in session.events()):
        session.wait(1.0)
    time.sleep(0.3)  # a process is starting
    assert timed(busy.close) < 15.0
    assert_gone(pids + pipeline.processes)
    with pytest.raises(Unavailable, match="the pipeline is closed"):
        drain(session)
