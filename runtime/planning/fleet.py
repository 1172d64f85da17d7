"""A discrete-event model of a fleet: pipelines that come and go with the viewers' number, and what those wait for.

Sessions arrive by a Poisson process, constant or along a day, last a random time, take a place of a pipeline, or wait for one and give up.
A controller keeps a share of free places warm; another pipeline needs a cold start. Times are seconds. Deterministic by its seed.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everface.core.errors import BadInput

DAY_S = 86_400.0
MOST_SESSIONS = 1_500_000  # beyond it a fleet is simulated at a part of its size
DEPART, FREE, READY, STOP = 0, 1, 2, 3
Times = NDArray[np.float64]


@dataclass(frozen=True)
class Load:
    """Who comes. `viewers` are sessions that are open at once, on the average of the time that is simulated."""

    viewers: float
    session_s: float = 300.0  # mean length
    session_cv: float = 1.0  # deviation / mean of the length; 1: exponential
    swing: float = 0.0  # of a day's curve: the peak is 1 + swing times the mean, twelve hours later it is 1 - swing
    patience_s: float = math.inf  # that a viewer waits for a place

    def __post_init__(self) -> None:
        if self.viewers <= 0 or self.session_s <= 0 or self.session_cv <= 0 or self.patience_s < 0 or not 0 <= self.swing <= 1:
            raise BadInput("viewers, lengths and their variation are above zero, patience is not below, a day's swing is 0 to 1: correct the numbers")

    def share(self, at_s: float | Times) -> float | Times:
        """The rate of arrivals then, over its mean. The day begins at its lowest."""
        return 1.0 - self.swing * np.cos(2 * np.pi * np.asarray(at_s) / DAY_S)


@dataclass(frozen=True)
class Fleet:
    """What serves them. A pipeline has `slots` places and runs on `gpus` devices."""

    slots: int = 1
    gpus: int = 1
    warm: float = 0.05  # free places that are kept ready, as a share of the taken ones; at least one pipeline
    cold_start_s: float = 60.0
    close_s: float = 0.0  # after a session, until its place can be taken again
    linger_s: float = 120.0  # that an empty pipeline stays
    least: int = 1  # pipelines
    most: int | None = None  # pipelines; None: as many as are needed

    def __post_init__(self) -> None:
        if self.slots < 1 or self.gpus < 1 or min(self.warm, self.cold_start_s, self.close_s, self.linger_s) < 0:
            raise BadInput("a pipeline has at least one place and one device, and times and shares are not below zero: correct the numbers")
        if self.least < 0 or (self.most is not None and self.most < max(1, self.least)):
            raise BadInput("a fleet has at least one pipeline, and as many as the least: correct the numbers")


@dataclass(frozen=True)
class FleetReport:
    """What came of it. Waits are until the session is open; of those who got no place, as long as they stayed."""

    sessions: int  # that got a place
    wait_p50_s: float
    wait_p99_s: float
    wait_mean_s: float
    waited: float  # share that did not get a place at once
    refused: float  # share that gave up
    utilisation: float  # places with a session over places that were on, starting pipelines included
    gpus: float  # mean
    gpus_peak: int
    gpu_hours_per_stream_hour: float
    scale: float  # of the size that was simulated


class _Pipelines:
    """The pipelines that are ready, by how many of their places are taken. A new session goes to the fullest that has room."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.taken: dict[int, int] = {}
        self.levels: list[list[int]] = [[] for _ in range(slots + 1)]  # those that had so many; `taken` says whether they still have
        self.stamps: dict[int, int] = {}  # changes when a pipeline is used
        self.busy = 0

    def add(self, name: int) -> None:
        self.taken[name] = self.stamps[name] = 0
        self.levels[0].append(name)

    def take(self) -> int | None:
        for level in range(self.slots - 1, -1, -1):
            stack = self.levels[level]
            while stack:
                name = stack.pop()
                if self.taken.get(name) == level:
                    self._move(name, level + 1)
                    self.busy += 1
                    return name
        return None

    def release(self, name: int) -> bool:
        """Whether it is empty now."""
        self._move(name, self.taken[name] - 1)
        self.busy -= 1
        return not self.taken[name]

    def remove(self, name: int) -> None:
        del self.taken[name], self.stamps[name]

    def _move(self, name: int, level: int) -> None:
        self.levels[level].append(name)
        self.taken[name] = level
        self.stamps[name] += 1


class _Run:
    """One simulation."""

    def __init__(self, load: Load, fleet: Fleet, arrivals: Times, opens: Times, lengths: Times, residual: Times, end_s: float) -> None:
        self.load, self.fleet, self.end_s = load, fleet, end_s
        self.arrivals, self.opens, self.lengths = arrivals.tolist(), opens.tolist(), lengths.tolist()
        self.pipelines = _Pipelines(fleet.slots)
        self.events: list[tuple[float, int, int, int]] = []  # time, kind, pipeline, stamp
        self.waiting: deque[int] = deque()  # indices of arrivals
        self.waits: list[float] = []
        self.served = self.queued = self.refused = self.closing = self.starting = self.made = self.peak = 0
        self.now = self.on_s = self.busy_s = 0.0
        first = -(-len(residual) // fleet.slots) + self._spare(len(residual)) // fleet.slots
        for _ in range(max(fleet.least, min(first, fleet.most or first))):
            self.pipelines.add(self._name())
        for length in residual.tolist():
            if (name := self.pipelines.take()) is not None:
                heapq.heappush(self.events, (length, DEPART, name, 0))
        self.peak = len(self.pipelines.taken)

    def run(self) -> None:
        times, number = self.arrivals, 0
        while True:
            at = times[number] if number < len(times) else math.inf
            event = self.events[0][0] if self.events else math.inf
            if min(at, event) > self.end_s:
                break
            if event <= at:
                self._advance(event)
                self._handle(*heapq.heappop(self.events)[1:])
            else:
                self._advance(at)
                self._arrive(number)
                number += 1
        self._advance(self.end_s)
        self._give_up()
        self.waits += [self.end_s - times[index] for index in self.waiting]  # so long already

    def _advance(self, to_s: float) -> None:
        spent = to_s - self.now
        self.on_s += spent * (len(self.pipelines.taken) + self.starting)
        self.busy_s += spent * (self.pipelines.busy - self.closing)
        self.now = to_s

    def _arrive(self, index: int) -> None:
        self._give_up()
        name = None if self.waiting else self.pipelines.take()
        if name is not None:
            self._serve(name, index)
        elif self.load.patience_s > 0:
            self.waiting.append(index)
        else:
            self._refuse(0.0)
        self._grow()

    def _serve(self, name: int, index: int) -> None:
        self.served += 1
        self.waits.append(self.now - self.arrivals[index] + self.opens[index])
        self.queued += self.now > self.arrivals[index]
        heapq.heappush(self.events, (self.now + self.opens[index] + self.lengths[index], DEPART, name, 0))

    def _refuse(self, waited_s: float) -> None:
        self.refused += 1
        self.waits.append(waited_s)

    def _handle(self, kind: int, name: int, stamp: int) -> None:
        if kind == DEPART and self.fleet.close_s:
            self.closing += 1
            heapq.heappush(self.events, (self.now + self.fleet.close_s, FREE, name, 0))
        elif kind in (DEPART, FREE):
            self.closing -= kind == FREE
            empty = self.pipelines.release(name)
            self._admit()
            if empty and not self.pipelines.taken[name]:
                heapq.heappush(self.events, (self.now + self.fleet.linger_s, STOP, name, self.pipelines.stamps[name]))
        elif kind == READY:
            self.starting -= 1
            self.pipelines.add(name)
            self._admit()
            if not self.pipelines.taken[name]:
                heapq.heappush(self.events, (self.now + self.fleet.linger_s, STOP, name, self.pipelines.stamps[name]))
        elif self.pipelines.stamps.get(name) == stamp:
            if self._free() - self.fleet.slots >= self._spare(self.pipelines.busy) and self._count() > self.fleet.least:
                self.pipelines.remove(name)
            else:
                heapq.heappush(self.events, (self.now + self.fleet.linger_s, STOP, name, stamp))

    def _give_up(self) -> None:
        """Those who have waited too long are gone."""
        while self.waiting and self.now - self.arrivals[self.waiting[0]] > self.load.patience_s:
            self.waiting.popleft()
            self._refuse(self.load.patience_s)

    def _admit(self) -> None:
        """Give free places to those who wait, the first first."""
        self._give_up()
        while self.waiting and (name := self.pipelines.take()) is not None:
            self._serve(name, self.waiting.popleft())

    def _grow(self) -> None:
        while self._free() < self._spare(self.pipelines.busy) and (self.fleet.most is None or self._count() < self.fleet.most):
            self.starting += 1
            heapq.heappush(self.events, (self.now + self.fleet.cold_start_s, READY, self._name(), 0))
            self.peak = max(self.peak, self._count())

    def _free(self) -> int:
        """Places that are free, or will be, beyond those that are waited for."""
        return self._count() * self.fleet.slots - self.pipelines.busy - len(self.waiting)

    def _spare(self, busy: int) -> int:
        return max(self.fleet.slots, math.ceil(self.fleet.warm * busy))

    def _count(self) -> int:
        return len(self.pipelines.taken) + self.starting

    def _name(self) -> int:
        self.made += 1
        return self.made


def simulate_fleet(load: Load, fleet: Fleet, hours: float = 1.0, seed: int = 0) -> FleetReport:
    """Run it for so long, from a steady state on. A fleet of too many arrivals is simulated at a part of its size, where waits are longer
    than in the whole, as fewer viewers share the warm places. Raises BadInput."""
    if hours <= 0:
        raise BadInput("simulate more than zero hours")
    end_s = 3600.0 * hours
    scale = min(1.0, MOST_SESSIONS / (load.viewers * (1 + end_s / load.session_s)))
    if scale < 1:
        most = None if fleet.most is None else max(1, round(fleet.most * scale))
        load = Load(load.viewers * scale, load.session_s, load.session_cv, load.swing, load.patience_s)
        fleet = Fleet(
            fleet.slots, fleet.gpus, fleet.warm, fleet.cold_start_s, fleet.close_s, fleet.linger_s, min(round(fleet.least * scale), most or fleet.least), most
        )
    rng = np.random.default_rng(seed)
    arrivals = _arrivals(load, end_s, rng)
    shape = load.session_cv**-2
    lengths = rng.gamma(shape, load.session_s / shape, len(arrivals))
    open_now = int(rng.poisson(load.viewers * float(load.share(0.0))))
    residual = rng.gamma(shape + 1, load.session_s / shape, open_now) * rng.random(open_now)  # what is left of a length that is open
    return replay_fleet(load, fleet, arrivals, np.zeros(len(arrivals)), lengths, end_s, residual, scale)


def replay_fleet(
    load: Load, fleet: Fleet, arrivals: Times, opens: Times, lengths: Times, end_s: float, residual: Times | None = None, scale: float = 1.0
) -> FleetReport:
    """Sessions that arrive at these times, take so long to open once they have a place, and last so long; of `load` only the patience counts.
    `residual`: what is left of those that are open at the beginning. `scale`: of what is simulated to what is reported."""
    run = _Run(load, fleet, arrivals, opens, lengths, np.empty(0) if residual is None else residual, end_s)
    run.run()
    waits = np.asarray(run.waits or [0.0])
    asked = max(1, run.served + run.refused)
    stream_h, gpu_h = run.busy_s / 3600, run.on_s * fleet.gpus / 3600
    return FleetReport(
        round(run.served / scale), float(np.quantile(waits, 0.5)), float(np.quantile(waits, 0.99)), float(waits.mean()),
        1 - (run.served - run.queued) / len(waits), run.refused / asked, run.busy_s / max(run.on_s * fleet.slots, 1e-9),
        run.on_s * fleet.gpus / end_s / scale, round(run.peak * fleet.gpus / scale), gpu_h / max(stream_h, 1e-9), scale,
    )  # fmt: skip


def _arrivals(load: Load, end_s: float, rng: np.random.Generator) -> Times:
    """Times of a Poisson process with the load's rate: those of a faster one, of which some are left out."""
    peak = load.viewers / load.session_s * (1 + load.swing)
    count = int(rng.poisson(peak * end_s))
    times = np.sort(rng.random(count) * end_s)
    return times if not load.swing else times[rng.random(count) * (1 + load.swing) < load.share(times)]


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits in M/M/c; `offered` is the load in erlangs, below `servers`."""
    blocked = erlang_b(servers, offered)
    busy = offered / servers
    return blocked / (1 - busy * (1 - blocked))


def erlang_b(servers: int, offered: float) -> float:
    """Probability that an arrival is lost in M/M/c/c."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked


def overload(sessions: int, active: float, at_once: int) -> float:
    """Share of time in which more than `at_once` of the sessions of a pipeline are active, each of them for a share of its time."""
    return sum(math.comb(sessions, n) * active**n * (1 - active) ** (sessions - n) for n in range(at_once + 1, sessions + 1))
