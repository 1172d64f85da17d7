"""The forecast of a step: its counts against the model's, its shape for the commands that print it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.launches import predicted

from everface.core.config import DiTConfig
from everface.models.live_avatar.step_costs import LATENT, LAUNCHES, STEP_COSTS, Rates, parts_ms


@pytest.mark.parametrize("dtype", LAUNCHES)
def test_launches_are_those_of_the_model(dtype: str) -> None:
    assert predicted(DiTConfig(), *LATENT, dtype).total() == LAUNCHES[dtype]


def test_work_is_what_the_page_says() -> None:
    """At 1 TFLOP/s and 1 TB/s a millisecond is a GFLOP, or a gigabyte."""
    one = Rates(attention=1, bf16=1, fp8=1, text=1, memory=1)
    half, eighth = parts_ms("bfloat16", one), parts_ms("fp8", one)
    assert round(half["GEMMs of the blocks"] / 1e3, 1) == 75.7 and round(half["GEMMs of the audio"] / 1e3, 1) == 4.0
    assert round(half["self-attention"] / 1e3, 2) == 39.74 and round(half["text attention"] / 1e3, 2) == 1.33
    assert half["row ops"] > eighth["row ops"]


def test_every_configuration_has_its_cost_and_its_assumptions() -> None:
    for cost in STEP_COSTS.values():
        assert 100 < cost["step_ms"] < 260 and cost["decode_ms"] > 0 and "not measured" in cost["assumes"]
    fastest = min(STEP_COSTS, key=lambda name: STEP_COSTS[name]["step_ms"])
    assert fastest == "fp8-attention, gluon at 900"


def test_the_page_has_every_sum() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
    assert [name for name, cost in STEP_COSTS.items() if f"**{cost['step_ms']}**" not in page] == []
