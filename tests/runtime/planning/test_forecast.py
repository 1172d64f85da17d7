"""The model against what is known: the paper's rates, the arithmetic of a pipeline, and the bounds of live sound."""

from __future__ import annotations

import pytest

from everface.cli import main
from everface.core.errors import BadInput
from everface.models.live_avatar.forecast import block_times, paper_table
from everface.models.live_avatar.names import role_specs
from everface.models.live_avatar.step_costs import MEASURED_SESSIONS, STEP_COSTS
from everface.runtime.planning.forecast import Times, simulate
from everface.runtime.planning.placement import Placement, place


def four_steps(devices: int) -> Placement:
    return place(role_specs(4), devices)


def times(jitter: float = 0.0, transfer_ms: float = 0.5) -> Times:
    return block_times(4, 100.0, 60.0, transfer_ms=transfer_ms, jitter=jitter)


def test_the_paper_within_five_percent() -> None:
    rows = paper_table()
    assert len(rows) >= 4
    for what, fps, paper_fps, first_ms, paper_ms in rows:
        assert abs(fps / paper_fps - 1) < 0.05, what
        assert paper_ms is None or abs(first_ms / paper_ms - 1) < 0.05, what


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5])
def test_rate_is_that_of_the_slowest_device(devices: int) -> None:
    placed = four_steps(devices)
    slowest = max(sum(60.0 if role == "decode" else 100.0 for role in roles) for roles in placed.devices)
    forecast = simulate(placed, times(transfer_ms=0.0))
    assert forecast.fps == pytest.approx(12_000 / slowest, rel=0.01)
    assert forecast.first_frame_ms == pytest.approx(460.0)
    assert max(forecast.busy) > 0.95


def test_jitter_costs_rate_and_is_seeded() -> None:
    placed, uneven = four_steps(5), times(jitter=0.2)
    calm, rough = simulate(placed, times()), simulate(placed, uneven)
    assert rough.fps < calm.fps and rough.period_ms[2] > rough.period_ms[0]
    assert simulate(placed, uneven) == rough != simulate(placed, uneven, seed=1)


def test_an_interruption_costs_the_pipe_and_what_is_being_worked_on() -> None:
    one, five = (simulate(four_steps(n), times(transfer_ms=0.0)) for n in (1, 5))
    assert 460 <= one.interrupt_ms[0] <= one.interrupt_ms[1] <= 2 * 460
    assert 460 <= five.interrupt_ms[0] <= five.interrupt_ms[1] <= 460 + 100  # at most the rest of one step before it


def test_live_sessions_until_the_pipeline_is_full() -> None:
    one, three, six = (simulate(four_steps(5), times(), sessions=n, live=True) for n in (1, 3, 6))
    assert one.fps == pytest.approx(25, rel=0.01) and one.misses == 0
    assert three.fps == pytest.approx(75, rel=0.02)
    assert six.fps < 125 and six.misses > 0.5  # 6 x 25 fps do not fit into 120


def test_bad_numbers_and_the_command(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(BadInput, match="above zero"):
        block_times(4, 0.0, 1.0)
    assert main(["simulate", "--paper"]) == 0
    assert "45.2" in capsys.readouterr().out
    assert main(["simulate", "--devices", "2", "--step-ms", "122", "--decode-ms", "69"]) == 0
    assert "step0+step1 | step2+step3+decode" in capsys.readouterr().out
    assert main(["simulate", "--devices", "9"]) == 2
    assert main(["simulate", "--decode-ms", "9"]) == 2
    assert "give --step-ms too" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [3, 4])
def test_without_given_times_it_forecasts_every_configuration(steps: int, capsys: pytest.CaptureFixture) -> None:
    """From the sums of a step: each rate is that of the slowest device, each first frame the sum of all; what is measured is named."""
    assert main(["simulate", "--steps", str(steps)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = 1 + next(i for i, line in enumerate(lines) if line.startswith("configuration"))
    rows = {line[:22].strip(): line[22:].split() for line in lines[at : at + len(STEP_COSTS)]}
    assert list(rows) == list(STEP_COSTS) and sum(" rates " in line for line in lines) == len(rows)
    said = [line for line in lines if line.startswith(("measured: ", "forecast: ", "not measured: "))]
    assert [line.partition(":")[0] for line in said] == ["measured", "measured", "forecast", "not measured"] and "H100" in said[-1]
    assert f"{next(one.fps for one in MEASURED_SESSIONS if one.steps == steps)} frames per second" in said[1]
    for name, (step_ms, measured_ms, decode_ms, *cells) in rows.items():
        cost = STEP_COSTS[name]
        assert (float(step_ms), measured_ms, float(decode_ms)) == (cost["step_ms"], str(cost["measured_ms"] or "-"), cost["decode_ms"])
        assert len(cells) == 2 * (steps + 1)  # as many devices as roles
        for count, (fps, first_s) in enumerate(zip(cells[::2], cells[1::2], strict=True), 1):
            placed = place(role_specs(steps), count)
            slowest_ms = max(sum(cost["decode_ms" if role == "decode" else "step_ms"] for role in roles) for roles in placed.devices)
            assert float(fps) == pytest.approx(12_000 / slowest_ms, rel=0.02)
            assert float(first_s) == pytest.approx((steps * cost["step_ms"] + cost["decode_ms"]) / 1e3, abs=0.01)


def test_an_interruption_waits_for_what_a_device_does_after_a_block() -> None:
    """One device that works 100 ms on a block and 300 more once it has sent it: three times in four the interruption comes in those."""
    placement, worked = Placement((("only",),)), {"only": 100.0}
    resting = simulate(placement, Times(worked, transfer_ms=0.0, rest_ms={"only": 300.0}))
    assert simulate(placement, Times(worked, transfer_ms=0.0)).interrupt_ms[0] < 160 < 250 < resting.interrupt_ms[0]
    assert resting.interrupt_ms[1] > 450
