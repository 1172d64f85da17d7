"""kill -9 of an engine, of a stage of one, and of a client, at random moments, beside sessions that go on.

`python -m tests.client.kills PREFIX SEED COUNT` for many: three kinds in turn, each from its seed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from tests.csrc.conftest import client_program
from tests.engine.processes import engine_process, held

from everface.client.engine_client import EngineClient, EngineSession
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, VideoFrame
from everface.runtime.events import Recovered, Recovering

COMMAND = f"{sys.executable} -m tests.engine.toy_engine"
TONE = (8000 * np.sin(np.arange(16_000) * 0.05)).astype(np.int16)
LONGEST_S = 240.0
A_HOST = 9  # kills over one engine: it gives up when four stages are lost within a minute
READ_S, LATE_S = 0.05, 3.0  # what a read is allowed, and how much later it may return on a busy machine
latest_s = 0.0  # the latest that one returned


def descriptors() -> list[str]:
    """What this process holds open, and its children."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}").partition(":")[0])
        except FileNotFoundError:
            continue
    return sorted([*found, *(child.name() for child in psutil.Process().children(recursive=True))])


def read_for(session: EngineSession, seconds: float, until: type | None = None) -> list[LiveEvent]:
    """Events of so long, or up to the first one of a class. Fails when a call takes longer than it was allowed to."""
    global latest_s
    events: list[LiveEvent] = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not (until and any(isinstance(e, until) for e in events)):
        began_s = time.monotonic()
        event = session.read(READ_S)
        late_s = time.monotonic() - began_s - READ_S
        latest_s = max(latest_s, late_s)
        assert late_s < LATE_S, f"a read of {READ_S} s returned {late_s:.2f} s late"
        if event is not None:
            events.append(event)
    return events


def check_order(events: list[LiveEvent], whole: bool) -> None:
    """Every event order that is legal, and no other. whole: the engine was lost; of a stage, what was made before still comes."""
    media = [e for e in events if isinstance(e, VideoFrame | AudioFrame)]
    shown = [e.pts for e in media if isinstance(e, VideoFrame) and not e.held]
    assert shown == sorted(set(shown)), "frames out of order"
    ends = [e.segment for e in events if isinstance(e, LiveSegmentEnd)]
    assert ends == sorted(set(ends)), "a segment ended twice"
    lost = False
    for event in events:
        if isinstance(event, Recovering | Recovered):
            assert lost == isinstance(event, Recovered), "recovered without a loss, or lost twice"
            lost = not lost
        assert not (whole and lost and isinstance(event, VideoFrame | AudioFrame)), "a frame between loss and recovery"
    assert not lost


def finish_segment(session: EngineSession) -> list[LiveEvent]:
    """Pushes a second of audio, then reads up to the end of its segment, which is shown whole."""
    while session.push_audio(TONE, timeout_s=1.0) == 0:
        pass
    session.end_segment()
    events: list[LiveEvent] = []
    while True:
        events += read_for(session, LONGEST_S, LiveSegmentEnd)
        last = events[-1]
        assert isinstance(last, LiveSegmentEnd)
        if not last.interrupted:
            return events


@dataclass
class Host:
    """An engine of two stages in processes of their own, that many kills happen to."""

    prefix: Path
    path: Path
    process: subprocess.Popen[bytes]
    client: Path  # a program that keeps opening sessions and uses each from several threads

    def settle(self, before: tuple[int, int, int]) -> None:
        """The engine holds what it held before."""
        end_s = time.monotonic() + LONGEST_S
        while self.holds() != before:
            assert time.monotonic() < end_s, f"the engine holds {self.holds()}, and {before} before"
            time.sleep(0.05)

    def holds(self) -> tuple[int, int, int]:
        """Sockets, memory of frames, processes."""
        return *held(self.process), len(self.stages())

    def rests(self) -> tuple[int, int, int]:
        """What it holds once that stays the same: a connection ends a moment after its client."""
        seen = [self.holds()]
        while len(seen) < 8 or len(set(seen[-8:])) > 1:
            time.sleep(0.05)
            seen.append(self.holds())
        return seen[-1]

    def stages(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()


@contextmanager
def host_of(prefix: Path) -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.sock"
        with engine_process(path, sys.executable, "-m", "tests.engine.toy_engine", "--socket", str(path), "--stages", "2") as process:
            yield Host(prefix, path, process, client_program())


def kill_engine(host: Host, chance: random.Random) -> None:
    """Of the client's own, which starts it again."""
    before, others = descriptors(), psutil.Process().children()
    with EngineClient(command=COMMAND, prefix=host.prefix) as engine:
        sessions = [engine.open_live("toy", idle=chance.random() < 0.5, paced=False) for _ in range(2)]
        events: list[list[LiveEvent]] = [[], []]
        for session in sessions:
            session.push_audio(TONE)
        for at in range(2):
            events[at] += read_for(sessions[at], chance.uniform(0, 0.3))
        [child] = [each for each in psutil.Process().children() if each not in others]
        child.send_signal(signal.SIGKILL)
        if chance.random() < 0.5:
            sessions[0].interrupt()
        for at, session in enumerate(sessions):
            events[at] += read_for(session, LONGEST_S, Recovered)
            events[at] += finish_segment(session)
            check_order(events[at], whole=True)
            last = events[at][-1]
            assert isinstance(last, LiveSegmentEnd) and last.pushed_s == last.shown_s == 1.0
        while sessions:
            sessions.pop().close()
        session = None  # the last one's handle is freed
    assert descriptors() == before


def kill_stage(host: Host, chance: random.Random) -> None:
    """The engine restarts it, and every frame comes."""
    with EngineClient(host.path, prefix=host.prefix) as engine:
        empty = host.rests()
        with engine.open_live("toy", idle=False, paced=chance.random() < 0.3) as session:
            events: list[LiveEvent] = []
            for _ in range(4):
                session.push_audio(TONE)
            events += read_for(session, chance.uniform(0, 1.0))
            stages = host.stages()
            assert len(stages) == 2
            stages[chance.randrange(2)].send_signal(signal.SIGKILL)
            events += finish_segment(session)
            check_order(events, whole=False)
            last = events[-1]
            assert isinstance(last, LiveSegmentEnd) and last.pushed_s == last.shown_s == 5.0
            assert sum(isinstance(e, VideoFrame) for e in events) == 125
        host.settle(empty)


def kill_client(host: Host, chance: random.Random) -> None:
    """The engine frees what it held, and another client's session notices nothing."""
    with EngineClient(host.path, prefix=host.prefix) as engine, engine.open_live("toy", idle=False, paced=False) as session, tempfile.TemporaryFile() as said:
        before = host.rests()
        command = [str(host.client), "threads", str(chance.randrange(1 << 30)), "1000000", str(host.path)]
        clients = [subprocess.Popen(command, stderr=said) for _ in range(chance.randint(1, 3))]
        session.push_audio(TONE)
        events = read_for(session, chance.uniform(0, 1.0))
        for client in clients:
            assert client.poll() is None, f"a client ended by itself: {said.seek(0) or said.read()!r}"
            client.kill()
        for client in clients:
            client.wait()
        events += finish_segment(session)
        check_order(events, whole=True)
        assert sum(isinstance(e, VideoFrame) for e in events) == 50
        host.settle(before)


KINDS: tuple[Callable[[Host, random.Random], None], ...] = (kill_engine, kill_stage, kill_client)


def kill_once(host: Host, seed: int) -> None:
    KINDS[seed % len(KINDS)](host, random.Random(seed))


def kill_many(prefix: Path, seeds: range) -> None:
    """Over one engine."""
    with host_of(prefix) as host:
        before = descriptors(), host.rests()
        for seed in seeds:
            kill_once(host, seed)
            print(f"seed {seed}, {KINDS[seed % len(KINDS)].__name__}: fine; the latest read so far was {1e3 * latest_s:.0f} ms late", flush=True)
        host.settle(before[1])
        assert descriptors() == before[0], "a descriptor or a process is left"


if __name__ == "__main__":
    first, end = int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[3])
    for begin in range(first, end, A_HOST):
        kill_many(Path(sys.argv[1]), range(begin, min(end, begin + A_HOST)))
