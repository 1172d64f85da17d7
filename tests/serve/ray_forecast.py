"""`everface simulate --fleet` against a fleet on a Ray cluster on this machine: `python -m tests.serve.ray_forecast` prints a table.

Viewers come to three replicas by a Poisson process. They wait in one line, the first asks for a place until it gets one, and who has waited too
long goes. The simulation gets the same arrivals and lengths of sessions, and two times that are measured before. The exit code is 1 if a figure
of the simulation is more than MOST away from that of the run. Steps sleep: waits follow from that and say nothing about speed.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from tests.serve.ray_fleet import SESSIONS, Fleet, Reading, asked, cluster, opened, wait
from websockets.sync.client import ClientConnection

from everface.runtime.planning import fleet as planning

REPLICAS = 3
STEP_S = 0.06  # of each role for a block
VIEWERS = 8.0  # sessions that would be open at once if there were places for all; there are six
SESSION_S, SESSION_CV = 3.0, 0.5
PATIENCE_S = 4.0
ASK_S = 0.05  # between two questions for a place
MEASURED = 12  # sessions whose times are measured before
MOST = 0.1  # difference, of the run's figure


@dataclass(frozen=True)
class Times:
    """Measured while the other places are taken."""

    opens_s: list[float]  # from the question for a place that is free to `started`
    close_s: float  # from the end of a session until its place can be taken again


class Line:
    """Where viewers wait. Thread-safe."""

    def __init__(self) -> None:
        self._waiting: deque[Viewer] = deque()
        self._changed = threading.Condition()

    def join(self, viewer: Viewer) -> None:
        with self._changed:
            self._waiting.append(viewer)

    def leave(self, viewer: Viewer) -> None:
        with self._changed:
            self._waiting.remove(viewer)
            self._changed.notify_all()

    def wait_first(self, viewer: Viewer, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting[0] is viewer, max(0.0, timeout_s))


class Viewer(threading.Thread):
    """Comes, waits for a place, watches, goes. Times are of the monotonic clock; 0: not yet."""

    def __init__(self, line: Line, arrives_s: float, length_s: float) -> None:
        super().__init__(daemon=True)
        self.line, self.arrives_s, self.length_s = line, arrives_s, length_s
        self.taken_s = self.open_s = self.left_s = self.gave_up_s = 0.0
        self.failed = False
        line.join(self)
        self.start()

    def run(self) -> None:
        socket = self._wait()
        self.line.leave(self)
        if socket is None:
            self.gave_up_s = self.arrives_s + PATIENCE_S  # it does not stay for the last answer
            return
        self.open_s = time.monotonic()
        reading = spoken(socket)
        time.sleep(self.length_s)
        self.failed = bool(reading.ended_s)
        reading.close()
        self.left_s = time.monotonic()

    def _wait(self) -> ClientConnection | None:
        goes_s = self.arrives_s + PATIENCE_S
        while self.line.wait_first(self, goes_s - time.monotonic()) and time.monotonic() < goes_s:
            self.taken_s = time.monotonic()
            if (socket := asked(idle=False)) is not None:
                return socket
            time.sleep(ASK_S)
        return None


def spoken(socket: ClientConnection) -> Reading:
    """A session that has been sent a second of audio, and is silent after it: two cores have to do for the whole fleet."""
    socket.send(bytes(2 * 16_000))
    return Reading(socket)


def measure() -> Times:
    """Close one session of a full fleet, and open another, at once and after its place is free for sure."""
    readings = [spoken(opened()) for _ in range(REPLICAS * SESSIONS)]

    def replaced(pause_s: float) -> float:
        began_s = time.monotonic()
        readings.pop(0).close()
        time.sleep(pause_s)
        while (socket := asked(idle=False)) is None:
            time.sleep(ASK_S)
        seconds = time.monotonic() - began_s - pause_s
        readings.append(spoken(socket))
        return seconds

    after_s, at_once_s = ([replaced(pause_s) for _ in range(MEASURED)] for pause_s in (1.0, 0.0))
    for reading in readings:
        reading.close()
    return Times(after_s, max(0.0, fmean(at_once_s) - fmean(after_s)))


def watched(arrivals: planning.Times, lengths: planning.Times, end_s: float) -> dict[str, float]:
    """The run, and its figures."""
    line, viewers, began_s = Line(), list[Viewer](), time.monotonic()
    for at_s, length_s in zip(arrivals.tolist(), lengths.tolist()):
        time.sleep(max(0.0, began_s + at_s - time.monotonic()))
        viewers.append(Viewer(line, began_s + at_s, length_s))
    time.sleep(max(0.0, began_s + end_s - time.monotonic()))
    end_s = time.monotonic()
    served = [viewer for viewer in viewers if 0 < viewer.open_s <= end_s]
    refused = [viewer for viewer in viewers if 0 < viewer.gave_up_s <= end_s]
    waits = [(viewer.open_s or viewer.gave_up_s or end_s) - viewer.arrives_s for viewer in viewers]
    taken_s = sum((viewer.left_s or end_s) - viewer.taken_s for viewer in served)
    for viewer in viewers:
        viewer.join()
    assert not any(viewer.failed for viewer in viewers)
    p50_s, p99_s = np.quantile(waits, (0.5, 0.99)).tolist()
    return {
        "wait, p50, s": p50_s, "wait, p99, s": p99_s, "refused": len(refused) / (len(served) + len(refused)),
        "places with a session": taken_s / (end_s - began_s) / (REPLICAS * SESSIONS), "sessions": len(served),
    }  # fmt: skip


def forecast(arrivals: planning.Times, opens: planning.Times, lengths: planning.Times, end_s: float, close_s: float) -> dict[str, float]:
    """The simulation, and its figures."""
    load = planning.Load(VIEWERS, SESSION_S, SESSION_CV, patience_s=PATIENCE_S)
    fleet = planning.Fleet(SESSIONS, close_s=close_s, least=REPLICAS, most=REPLICAS)
    report = planning.replay_fleet(load, fleet, arrivals, opens, lengths, end_s)
    return {
        "wait, p50, s": report.wait_p50_s, "wait, p99, s": report.wait_p99_s, "refused": report.refused,
        "places with a session": report.utilisation, "sessions": report.sessions,
    }  # fmt: skip


def compared(fleet: Fleet, seconds: float, seed: int, show: Callable[[str], object] = print) -> bool:
    """Whether the simulation is right about the run. Shows the table."""
    fleet.run(REPLICAS, REPLICAS, sleep_s=STEP_S)
    wait(lambda: fleet.running() == REPLICAS)
    times = measure()
    show(f"{REPLICAS} replicas of {SESSIONS} places; measured: a session opens in {fmean(times.opens_s):.3f} s, closes in {times.close_s:.3f} s")
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.random(rng.poisson(VIEWERS / SESSION_S * seconds)) * seconds)
    lengths = rng.gamma(SESSION_CV**-2, SESSION_S * SESSION_CV**2, len(arrivals))
    run = watched(arrivals, lengths, seconds)
    simulated = forecast(arrivals, rng.choice(times.opens_s, len(arrivals)), lengths, seconds, times.close_s)
    show("| figure | simulation | run | difference |\n|---|---|---|---|")
    right = True
    for name, value in run.items():
        difference = abs(simulated[name] - value) / max(value, 1e-9)
        right &= difference <= MOST
        show(f"| {name} | {simulated[name]:.3g} | {value:.3g} | {difference:.1%} |")
    return right


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve.ray_forecast")
    parser.add_argument("--seconds", type=float, default=90.0, help="of the run (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and lengths (%(default)s)")
    args = parser.parse_args()
    with cluster() as fleet:
        return int(not compared(fleet, args.seconds, args.seed))


if __name__ == "__main__":
    sys.exit(main())
