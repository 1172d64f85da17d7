"""kill -9 of an engine at a random moment, under a client that goes on: `python -m tests.client.kills PREFIX SEED COUNT` for many."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from everface.client.engine_client import EngineClient, EngineSession
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, VideoFrame
from everface.runtime.events import Recovered, Recovering

COMMAND = f"{sys.executable} -m tests.engine.toy_engine"
TONE = (8000 * np.sin(np.arange(16_000) * 0.05)).astype(np.int16)
LONGEST_S = 90.0


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
    events: list[LiveEvent] = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not (until and any(isinstance(e, until) for e in events)):
        began_s = time.monotonic()
        event = session.read(0.05)
        assert time.monotonic() - began_s < 3.0, "a read of 50 ms took seconds"
        if event is not None:
            events.append(event)
    return events


def check_order(events: list[LiveEvent]) -> None:
    """Every event order that is legal, and no other."""
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
        assert not (lost and isinstance(event, VideoFrame | AudioFrame)), "a frame between loss and recovery"
    assert not lost


def kill_once(prefix: Path, seed: int) -> None:
    chance = random.Random(seed)
    before = descriptors()
    with EngineClient(command=COMMAND, prefix=prefix) as engine:
        sessions = [engine.open_live("toy", idle=chance.random() < 0.5, paced=False) for _ in range(2)]
        events: list[list[LiveEvent]] = [[], []]
        for session in sessions:
            session.push_audio(TONE)
        for at in range(2):
            events[at] += read_for(sessions[at], chance.uniform(0, 0.3))
        [child] = psutil.Process().children()
        child.send_signal(signal.SIGKILL)
        if chance.random() < 0.5:
            sessions[0].interrupt()
        for at, session in enumerate(sessions):
            events[at] += read_for(session, LONGEST_S, Recovered)
            while session.push_audio(TONE, timeout_s=1.0) == 0:
                pass
            session.end_segment()
            while True:
                events[at] += read_for(session, LONGEST_S, LiveSegmentEnd)
                last = events[at][-1]
                assert isinstance(last, LiveSegmentEnd)
                if not last.interrupted:
                    break
            check_order(events[at])
            assert last.pushed_s == last.shown_s == 1.0
        while sessions:
            sessions.pop().close()
        session = None  # the last one's handle is freed
    assert descriptors() == before


if __name__ == "__main__":
    for number in range(int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[3])):
        kill_once(Path(sys.argv[1]), number)
        print(f"seed {number} is fine", flush=True)
