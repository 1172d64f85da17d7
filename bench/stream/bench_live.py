"""A live session of the bundled model, at the pace of the clock: the scenario of `everface bench live`, a figure a bench.

    python -m pytest bench/stream/bench_live.py --benchmark-json FILE

A round is one measurement, so that its statistics are those of the figure: of the cadence, a round is the wait for a frame, 40 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch
from bench.rows import commit

from everface.avatar.avatar import Avatar
from everface.avatar.bench import cpu_name
from everface.avatar.demo import IMAGE
from everface.avatar.live_scenario import AFTER_INTERRUPTION_S, Scenario
from everface.core.config import FPS

TURNS, FRAMES = 10, 250
PAUSE_S = 1.2  # longer than what is left to show of speech, so that the next begins in idle motion


@pytest.fixture(scope="module")
def avatar() -> Iterator[Avatar]:
    with Avatar() as avatar:
        yield avatar


@pytest.fixture
def scenario(avatar: Avatar) -> Iterator[Scenario]:
    with avatar.open_live(IMAGE) as session:
        scenario = Scenario(session)
        scenario.watch(3.0)
        yield scenario


def record(benchmark: Any, scenario: Scenario) -> None:
    machine = f"{cpu_name()}, {psutil.cpu_count()} cores, torch {torch.__version__}"
    stats = scenario.session.stats()
    benchmark.extra_info.update(commit=commit(), machine=machine, underruns=stats.underruns, level_changes=stats.level_changes, block_ms=stats.block_ms)


def test_first_frame(benchmark: Any, avatar: Avatar) -> None:
    """From a session that is asked for to its first frame, with the model loaded."""

    def opened() -> None:
        with avatar.open_live(IMAGE) as session:
            Scenario(session).next_frame()

    benchmark.pedantic(opened, rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(commit=commit())


def test_onset(benchmark: Any, scenario: Scenario) -> None:
    """From the first chunk of speech to its first frame."""
    benchmark.pedantic(lambda: scenario.speak(0.0, until_shown=True), setup=lambda: scenario.pause(PAUSE_S), rounds=TURNS)
    record(benchmark, scenario)


def test_interruption(benchmark: Any, scenario: Scenario) -> None:
    """From an interruption of speech to the first frame after it."""

    def speaking() -> None:
        scenario.watch(AFTER_INTERRUPTION_S)
        scenario.speak(1.5)

    benchmark.pedantic(scenario.interrupt, setup=speaking, rounds=TURNS)
    assert not any(scenario.seen.stale_s)
    record(benchmark, scenario)


def test_cadence(benchmark: Any, scenario: Scenario) -> None:
    benchmark.pedantic(scenario.next_frame, rounds=FRAMES, warmup_rounds=1)
    if benchmark.stats is not None:  # --benchmark-disable
        late = [abs(seconds - 1 / FPS) for seconds in benchmark.stats.stats.data]
        benchmark.extra_info["jitter_p99_ms"] = 1e3 * sorted(late)[int(0.99 * len(late))]
    record(benchmark, scenario)
