"""The fleet's model against the formulas of queueing theory, and its controller against what it promises."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from everface.core.errors import BadInput
from everface.runtime.planning.fleet import Fleet, Load, erlang_b, erlang_c, overload, replay_fleet, simulate_fleet


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.5), (5, 0.8), (20, 0.9)])
def test_waits_are_those_of_erlang_c(servers: int, busy: float) -> None:
    offered, session_s = servers * busy, 60.0
    fixed = Fleet(least=servers, most=servers)
    report = simulate_fleet(Load(offered, session_s), fixed, hours=1200 / offered, seed=1)
    waits = erlang_c(servers, offered)
    assert report.waited == pytest.approx(waits, rel=0.1)
    assert report.wait_mean_s == pytest.approx(waits * session_s / (servers - offered), rel=0.15)
    assert report.utilisation == pytest.approx(busy, rel=0.05) and report.refused == 0 and report.gpus == pytest.approx(servers)


def test_losses_are_those_of_erlang_b_whatever_the_lengths() -> None:
    for cv in (0.5, 1.0, 2.0):
        report = simulate_fleet(Load(8.0, 60.0, cv, patience_s=0.0), Fleet(slots=2, least=5, most=5), hours=100, seed=2)
        assert report.refused == pytest.approx(erlang_b(10, 8.0), rel=0.1), cv


def test_sessions_take_their_time_to_open_and_to_close() -> None:
    arrivals, opens, lengths = np.array([0.0, 1.0, 1.5]), np.array([0.5, 0.5, 0.5]), np.array([2.0, 2.0, 2.0])
    one = Fleet(least=1, most=1, close_s=1.0)
    report = replay_fleet(Load(1, patience_s=4.0), one, arrivals, opens, lengths, end_s=10.0)
    assert report.sessions == 2 and report.refused == pytest.approx(1 / 3) and report.waited == pytest.approx(2 / 3)
    assert report.wait_p50_s == pytest.approx(2.5 + 0.5)  # the place is free again at 0.5 + 2 + 1
    assert report.utilisation == pytest.approx(2 * 2.5 / 10)


def test_the_formulas() -> None:
    assert erlang_c(1, 0.5) == pytest.approx(0.5) and erlang_b(1, 1.0) == pytest.approx(0.5)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert overload(2, 0.5, 1) == pytest.approx(0.25) and overload(3, 1.0, 3) == 0


def test_a_seed_is_repeated() -> None:
    load, fleet = Load(50, swing=0.5, patience_s=30), Fleet(slots=2)
    assert simulate_fleet(load, fleet, 3, seed=4) == simulate_fleet(load, fleet, 3, seed=4) != simulate_fleet(load, fleet, 3, seed=5)


def test_warm_places_buy_short_waits() -> None:
    load = Load(60, swing=0.8)
    reports = [simulate_fleet(load, Fleet(warm=warm, cold_start_s=120), 24, seed=3) for warm in (0.0, 0.1, 0.4)]
    assert reports[0].wait_p99_s > reports[1].wait_p99_s >= reports[2].wait_p99_s == 0
    assert reports[0].gpu_hours_per_stream_hour < reports[1].gpu_hours_per_stream_hour < reports[2].gpu_hours_per_stream_hour
    assert all(r.utilisation * r.gpu_hours_per_stream_hour == pytest.approx(1) for r in reports)


def test_a_fleet_follows_the_day() -> None:
    by_day = simulate_fleet(Load(90, swing=0.9), Fleet(gpus=5), 24)
    flat = simulate_fleet(Load(90), Fleet(gpus=5), 24)
    assert by_day.gpus_peak > 1.5 * flat.gpus_peak and by_day.gpus == pytest.approx(flat.gpus, rel=0.15)


def test_a_fleet_that_is_too_small_refuses() -> None:
    report = simulate_fleet(Load(100, patience_s=20), Fleet(most=50), 10)
    assert report.refused == pytest.approx(0.5, abs=0.05) and report.utilisation > 0.98 and report.gpus_peak == 50
    assert report.wait_p99_s <= 20


@pytest.mark.long
def test_a_hundred_thousand_viewers_take_seconds() -> None:
    began = time.process_time()
    report = simulate_fleet(Load(100_000, 600.0), Fleet(most=110_000), 0.2)
    assert time.process_time() - began < 20
    assert report.scale == 1 and report.sessions == pytest.approx(120_000, rel=0.02) and report.wait_p99_s == 0


@pytest.mark.long
def test_a_day_of_them_is_simulated_at_a_part_of_its_size() -> None:
    report = simulate_fleet(Load(1e7, swing=0.5), Fleet(most=20_000_000), 0.01)
    assert report.scale < 0.2 and report.gpus == pytest.approx(1e7 * 0.5 * 1.05, rel=0.1)


@pytest.mark.parametrize(
    "make", [lambda: Load(0), lambda: Load(1, swing=2), lambda: Fleet(slots=0), lambda: Fleet(most=0), lambda: simulate_fleet(Load(1), Fleet(), 0)]
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(BadInput):
        make()  # pyright: ignore[reportCallIssue]  a function of the list above


def test_an_endless_patience_is_the_default() -> None:
    assert Load(1).patience_s == math.inf
