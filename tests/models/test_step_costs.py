"""The forecast of a step: its counts against the model's, its sums against what bench/results has, its shape for the commands that print it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench.rows import read_rows
from tests.runtime.launches import predicted

from everface.core.config import SAMPLERS, DiTConfig, StreamConfig
from everface.models.live_avatar.forecast import block_times
from everface.models.live_avatar.names import role_specs
from everface.models.live_avatar.step_costs import (
    ATTENTION_TFLOP_S,
    DECODE_MS,
    LATENT,
    MEASURED_MS,
    MEASURED_SESSIONS,
    ROW_OPS_TB_S,
    STEP_COSTS,
    Rates,
    parts_ms,
)
from everface.runtime.planning.forecast import simulate
from everface.runtime.planning.placement import place

ROOT = Path(__file__).parents[2]
LAUNCHES = {"bfloat16": 644, "fp8": 684, "fp8-attention": 684}  # of a captured step, as docs/tuning.md has them
SHORT = {"bfloat16": "bf16"}


def rows(files: str) -> list[dict[str, Any]]:
    """What the benches of an H200 noted."""
    return [row["extra_info"] for file in sorted((ROOT / "bench/results/h200").glob(files)) for row in read_rows(file).values() if "extra_info" in row]


def configuration(info: dict[str, Any]) -> str:
    return f"{SHORT.get(info['dtype'], info['dtype'])}, {info['attention_selected']}"


STEPS = [(configuration(info), info["step_ms"]) for info in rows("step*.jsonl") + rows("earlier.jsonl") if "attention_selected" in info and "step_ms" in info]
SESSIONS = [info for info in rows("*.jsonl") if "fps" in info]


@pytest.mark.parametrize("dtype", LAUNCHES)
def test_launches_are_those_of_the_model(dtype: str) -> None:
    assert predicted(DiTConfig(), *LATENT, dtype).total() == LAUNCHES[dtype]


def test_work_is_what_the_page_says() -> None:
    """At 1 TFLOP/s and 1 TB/s a millisecond is a GFLOP, or a gigabyte."""
    one = Rates(attention=1, memory=1, bf16=1, fp8=1, text=1)
    half, eighth = parts_ms("bfloat16", one), parts_ms("fp8", one)
    assert round(half["GEMMs of the blocks"] / 1e3, 1) == 75.7 and round(half["GEMMs of the audio"] / 1e3, 1) == 4.0
    assert round(half["self-attention"] / 1e3, 2) == 39.74 and round(half["text attention"] / 1e3, 2) == 1.33
    assert half["row ops"] > eighth["row ops"]


@pytest.mark.parametrize(("name", "measured_ms"), STEPS)
def test_every_measured_step_is_within_five_percent_of_its_forecast(name: str, measured_ms: float) -> None:
    assert abs(STEP_COSTS[name]["step_ms"] / measured_ms - 1) < 0.05


def test_measured_steps_are_those_of_the_results() -> None:
    assert set(MEASURED_MS) == {name for name, _ in STEPS}
    for name, ms in MEASURED_MS.items():
        assert ms in [round(other, 1) for same, other in STEPS if same == name]
    assert [name for name, cost in STEP_COSTS.items() if cost["measured_ms"] != MEASURED_MS.get(name)] == []


def test_rates_are_those_of_the_results() -> None:
    """Attention by its latest bench; GEMMs, text and row ops by the launches of a step, whose counted work takes the measured time."""
    for info in rows("attention*.jsonl"):
        if "15312" in info.get("shape", "") and (info["dtype"], info["by"]) in ATTENTION_TFLOP_S:
            assert info["flops"] / info["call_us"] / 1e6 == pytest.approx(ATTENTION_TFLOP_S[info["dtype"], info["by"]], rel=0.01)
    for info in rows("launches.jsonl"):
        dtype, ms = info["dtype"], {name: ms for name, (_, ms) in info["kernels"].items()}
        counted = parts_ms(dtype, Rates(1.0, ROW_OPS_TB_S[dtype]))
        gemms = sum(t for name, t in ms.items() if name.startswith("nvjet"))
        others = sum(t for name, t in ms.items() if any(word in name for word in ("cross_", "norm", "quantize_rows", "Gelu")))
        assert gemms == pytest.approx(counted["GEMMs of the blocks"] + counted["GEMMs of the audio"], rel=0.02)
        assert others == pytest.approx(counted["text attention"] + counted["row ops"] + counted["rotation of the sink"], rel=0.03)


@pytest.mark.parametrize("info", SESSIONS, ids=configuration)
def test_a_measured_session_is_as_fast_as_forecast(info: dict[str, Any]) -> None:
    """Not fitted: steps and decoder of one device, one after the other."""
    steps, cost = StreamConfig(sampler=info["sampler"]).steps, STEP_COSTS[configuration(info)]
    forecast = simulate(place(role_specs(steps), 1), block_times(steps, cost["step_ms"], cost["decode_ms"]))
    assert info["sampler"] in SAMPLERS and forecast.fps == pytest.approx(info["fps"], rel=0.05)


def test_measured_sessions_and_decoding_are_those_of_the_results() -> None:
    seen = [
        (configuration(i), StreamConfig(sampler=i["sampler"]).steps, round(i["fps"], 1), round(i["first_frame_warm_ms"], -1)) for i in SESSIONS
    ]
    assert [one for one in MEASURED_SESSIONS if tuple(one) not in seen] == []
    assert [round(info["call_us"] / 1e3, 1) for info in rows("vae.jsonl") if info["by"] == "op"] == [DECODE_MS]


def test_the_fastest_is_eight_bit_attention_by_gluon() -> None:
    assert min(STEP_COSTS, key=lambda name: STEP_COSTS[name]["step_ms"]) == "fp8-attention, gluon"


def test_the_page_has_every_sum() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    assert [name for name, cost in STEP_COSTS.items() if f"**{cost['step_ms']}**" not in page] == []
    assert [ms for ms in MEASURED_MS.values() if f"| {ms} |" not in page] == []
