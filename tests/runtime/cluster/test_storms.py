"""A hundred interruptions per second, and a thousand sessions: nothing stale comes out, nothing is left."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from contextlib import closing

import psutil
from tests.runtime import toy
from tests.runtime.cluster.toy_pipeline import start_on, start_processes

from everface.runtime.events import SegmentEnd
from everface.runtime.scheduler import Scheduler

FULL = "EVERFACE_FULL_STORM" in os.environ  # set by hand, for a long run
STORM_S, VISITS = (30.0, 1000) if FULL else (5.0, 250)


def test_a_storm_of_interruptions() -> None:
    with closing(Scheduler(start_on("3"))) as scheduler:
        session = toy.open_at(scheduler).wait_open()
        spoken: set[int] = set()
        segments: dict[int, SegmentEnd] = {}
        stale: list[int] = []
        over = threading.Event()

        def view() -> None:
            while not over.is_set():
                session.wait(0.05)
                turn = session.turn  # an interruption may come while we poll: then both are right
                for block in session.poll():
                    if block.turn < turn:
                        stale.append(block.turn)
                read()

        def read() -> None:
            for event in session.events():
                assert isinstance(event, SegmentEnd) and event.turn not in segments
                segments[event.turn] = event

        viewer = threading.Thread(target=view)
        viewer.start()
        rng, interruptions, began_s = random.Random(1), 0, time.monotonic()
        while time.monotonic() - began_s < STORM_S:
            if session.push_audio(toy.speech(rng.choice((0.1, 0.5, 1.0)), seed=interruptions)):
                spoken.add(session.turn)
            session.interrupt()
            session.interrupt()  # twice is once
            interruptions += 1
            time.sleep(max(0.0, began_s + interruptions / 100 - time.monotonic()))
        session.push_audio(toy.speech(2.0))
        spoken.add(session.turn)
        session.end_segment()
        while session.turn not in segments:
            assert time.monotonic() - began_s < STORM_S + 30
            time.sleep(0.01)
        over.set()
        viewer.join()
        assert not stale
        assert segments.keys() == spoken
        assert interruptions > 80 * STORM_S and session.turn == interruptions
        assert not segments[session.turn].interrupted and segments[session.turn].shown == session.accepted
        at = 0
        for turn in sorted(segments):
            assert segments[turn].begin == at
            at = segments[turn].end


def test_many_sessions_leave_nothing() -> None:
    pipeline = start_processes(2)
    with closing(Scheduler(pipeline)) as scheduler:

        def visit(count: int, played: int = 10) -> None:
            for number in range(count):
                with toy.open_at(scheduler).wait_open() as session:
                    session.push_audio(toy.speech(1.2, seed=number % 7))  # with two replies 5 messages, coprime to the 18 slots
                    if number % played == 0:
                        session.end_segment()
                        assert len(list(session.frames())) == 3

        def held() -> tuple[list[int], list[int], int]:
            gc.collect()
            processes = [psutil.Process(), *map(psutil.Process, pipeline.processes)]
            return (
                [p.num_fds() for p in processes],
                [p.num_threads() for p in processes],
                sum(p.memory_info().rss for p in processes),
            )

        visit(60, played=1)  # every slot of every channel has had frames, and keeps its memory
        fds, threads, memory = held()
        visit(VISITS)
        fds_after, threads_after, memory_after = held()
        assert fds_after == fds and threads_after == threads
        assert memory_after < memory + 20e6
        deadline_s = time.monotonic() + 60
        while scheduler.busy and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert not scheduler.busy and pipeline.in_flight == 0
