"""Load on a fleet of three replicas on a Ray cluster on this machine: `python -m tests.serve.ray_load` prints a table.

Their steps sleep, so that three replicas have room on two cores. The exit code is 1 if a figure misses its bar.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.serve.ray_fleet import SESSIONS, Fleet, Reading, cluster, opened, wait

REPLICAS = 3
STEP_S = 0.12  # of each role for a block: two on one thread, 50 frames per second
MEASURED_S = 20.0
CALL_FRAMES = 100  # of one call, at the pace of the clock: 4 s, less than the time that a replica has to drain


@dataclass
class Row:
    """One figure and its bar."""

    what: str
    value: float
    unit: str
    passed: bool

    def line(self) -> str:
        return f"| {self.what} | {self.value:.3g}{self.unit and ' ' + self.unit} | {'yes' if self.passed else 'NO'} |"


class Caller(threading.Thread):
    """One call after another. A refusal is asked again; a session that ends before its caller closes it has failed."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.calls = self.failed = 0
        self.stop = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.stop.is_set():
            reading = Reading(opened())
            wait(lambda reading=reading: reading.frames >= CALL_FRAMES or reading.ended_s)
            self.failed += bool(reading.ended_s)
            self.calls += 1
            reading.close()


@contextmanager
def sessions(count: int, paced: bool) -> Iterator[list[Reading]]:
    """Open ones, each of which gives out frames."""
    readings = [Reading(opened(paced)) for _ in range(count)]
    try:
        wait(lambda: all(reading.frames > 50 for reading in readings))
        yield readings
    finally:
        for reading in readings:
            reading.close()


def frames_per_s(readings: list[Reading]) -> float:
    """Messages of JPEG and PCM, two for each frame."""
    began_s, before = time.monotonic(), sum(reading.frames for reading in readings)
    time.sleep(MEASURED_S)
    return (sum(reading.frames for reading in readings) - before) / 2 / (time.monotonic() - began_s)


def throughput(fleet: Fleet) -> Row:
    """Of three replicas against three times that of one."""
    rates = list[float]()
    for replicas in (1, REPLICAS):
        fleet.run(replicas, replicas, sleep_s=STEP_S)
        wait(lambda replicas=replicas: fleet.running() == replicas)
        with sessions(replicas * SESSIONS, paced=False) as readings:
            rates.append(frames_per_s(readings))
            assert not any(reading.ended_s for reading in readings)
    print(f"frames per second of 1 and {REPLICAS} replicas: {rates[0]:.1f}, {rates[1]:.1f}")
    share = rates[1] / (REPLICAS * rates[0])
    return Row(f"throughput of {REPLICAS} replicas, {REPLICAS * SESSIONS} sessions / sum of single ones", share, "", share >= 0.95)


def killed(fleet: Fleet) -> list[Row]:
    """One of three replicas: its own sessions are told, the others go on."""
    with sessions(REPLICAS * SESSIONS, paced=True) as readings:
        killed_s = time.monotonic()
        fleet.kill_one()
        wait(lambda: sum(bool(reading.ended_s) for reading in readings) >= SESSIONS)
        told_s = max(reading.ended_s - killed_s for reading in readings if reading.ended_s)
        left = [reading for reading in readings if not reading.ended_s]
        before = [reading.frames for reading in left]
        wait(lambda: all(reading.ended_s or reading.frames > count + 100 for reading, count in zip(left, before)))
        untouched = sum(not reading.ended_s for reading in left)
    wait(lambda: fleet.running() == REPLICAS)
    return [
        Row("a replica killed: its sessions told after", told_s, "s", told_s <= 1.0),
        Row("sessions of the others that went on", untouched, f"of {(REPLICAS - 1) * SESSIONS}", untouched == (REPLICAS - 1) * SESSIONS),
    ]


def scaled(fleet: Fleet) -> Row:
    """1 -> 3 -> 1 replicas by the number of callers."""
    fleet.run(1, REPLICAS, sleep_s=STEP_S / 4)
    wait(lambda: fleet.running() == 1)
    callers = [Caller() for _ in range(REPLICAS * SESSIONS)]
    wait(lambda: fleet.running() == REPLICAS)
    for caller in callers[1:]:
        caller.stop.set()
    wait(lambda: fleet.running() == 1)
    calls_before = callers[0].calls
    wait(lambda: callers[0].calls > calls_before + 1)  # it goes on with one
    callers[0].stop.set()
    for caller in callers:
        caller.join()
    failed = sum(caller.failed for caller in callers)
    return Row("failed sessions while it scaled 1 -> 3 -> 1", failed, f"of {sum(caller.calls for caller in callers)}", failed == 0)


def main() -> int:
    with cluster() as fleet:
        rows = [throughput(fleet), *killed(fleet), scaled(fleet)]
    print("| figure | value | passed |\n|---|---|---|", *(row.line() for row in rows), sep="\n")
    return int(not all(row.passed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
