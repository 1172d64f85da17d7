"""How a run counts its time."""

import pytest

from everface.train.engine import loop
from everface.train.engine.checkpoint import Progress
from everface.train.engine.plan import RunPlan
from everface.train.engine.ranks import Ranks


class Watch:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_pause_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, progress = Watch(), Progress()
    monkeypatch.setattr(loop, "time", watch)
    clock = loop.Clock(RunPlan(minutes=10.0), progress, Ranks())
    for seconds in [*[2.0] * 30, 36.0, 3600.0, 2.0]:  # the 36 s are a measurement
        watch.now += seconds
        clock.tick()
    assert progress.step == 33 and 60 + 36 + 2 + 20 * 3 < progress.seconds < 60 + 36 + 2 + 20 * 3.2
    assert clock.done() == pytest.approx(progress.seconds / 600)
    again = loop.Clock(RunPlan(minutes=10.0), progress, Ranks())  # as after a restart
    assert again.done() == clock.done()


def test_a_run_that_begins_counts_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, progress = Watch(), Progress()
    monkeypatch.setattr(loop, "time", watch)
    clock = loop.Clock(RunPlan(), progress, Ranks())
    for seconds in (1.0, 100.0):
        watch.now += seconds
        clock.tick()
    assert progress.seconds == 101
