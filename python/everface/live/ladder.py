"""How far a live session lowers its quality when the machine is slower than real time, and when it goes up again."""

from __future__ import annotations

from collections import deque
from typing import Any

WINDOW_S = 2.0  # in which late frames are counted
MOST_LATE = 0.2  # of the frames in a window: with as many it goes a level down
UP_S = 10.0  # without a late frame before the level above is tried
MOST_UP_S = 160.0  # every trial that fails doubles that time, up to this
TRIAL_S = 20.0  # a level that is left again so soon has failed


class Ladder:
    """Level 0 is full quality, `levels` - 1 the lowest. It counts frames, so a short stall changes nothing. `fps`: of the cadence. Not thread-safe."""

    def __init__(self, levels: int, fps: int) -> None:
        self.level, self._lowest = 0, levels - 1
        self._most_late = max(1, round(MOST_LATE * WINDOW_S * fps))
        self._late: deque[float] = deque()  # when a frame was late
        self._good_since_s: float | None = None
        self._raised_s = float("-inf")  # when the level was last raised
        self._up_s = UP_S

    def observe(self, now_s: float, late: bool, settled: bool) -> bool:
        """One frame of the cadence was given out. `late`: it was not ready in time, by no fault of the caller's; `settled`: what is shown was
        made at the present level. Returns whether the level has changed."""
        if self._good_since_s is None or (late and settled):
            self._good_since_s = now_s
        if late and settled:
            self._late.append(now_s)
        while self._late and self._late[0] < now_s - WINDOW_S:
            self._late.popleft()
        if len(self._late) >= self._most_late and self.level < self._lowest:
            self._up_s = min(2 * self._up_s, MOST_UP_S) if now_s - self._raised_s < TRIAL_S else UP_S
            self._move(now_s, 1)
            return True
        if self.level and settled and not late and now_s - self._good_since_s >= self._up_s:
            self._raised_s = now_s
            self._move(now_s, -1)
            return True
        return False

    def _move(self, now_s: float, by: int) -> None:
        self.level += by
        self._late.clear()
        self._good_since_s = now_s


def describe_level(change: dict[str, Any], factor: int) -> str:
    """For people: what `Session.change` was asked for, and for how many output frames each of the model's is shown."""
    what = ", ".join(f"{name} {value}" for name, value in change.items()) or "full quality"
    return what + (f", each frame shown for {factor}" if factor > 1 else "")
