"""Virtual time: everything that takes time is an event in one heap, so that a run is one thread and the same for the same seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True)
class _Event:
    at_s: float
    order: int
    act: Callable[[], None] = field(compare=False)


class World:
    """`step` runs the next event."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self._events: list[_Event] = []
        self._count = 0

    def now(self) -> float:
        return self.now_s

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, _Event(self.now_s + seconds, self._count, act))

    def step(self) -> bool:
        if not self._events:
            return False
        event = heapq.heappop(self._events)
        self.now_s = event.at_s
        event.act()
        return True

    def run_for(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self._events and self._events[0].at_s <= end_s:
            self.step()
        self.now_s = end_s
