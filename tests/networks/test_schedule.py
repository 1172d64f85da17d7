"""Noise levels, the Euler step, and the seeded sink distance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.core.errors import BadInput
from everface.networks.transformer.schedule import Schedule, euler, sigmas, sink_distance


def test_levels_against_golden(golden: Path) -> None:
    data = load_file(golden / "sampler.safetensors")
    counts = [int(name[1:].split(".")[0]) for name in data if name.endswith(".sigmas")]
    assert counts
    for steps in counts:
        schedule = Schedule.from_sigmas(sigmas(steps))
        torch.testing.assert_close(torch.tensor(schedule.sigmas), data[f"n{steps}.sigmas"], atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.tensor(schedule.timesteps), data[f"n{steps}.timesteps"], atol=1e-4, rtol=0)


def test_official_sampler_is_exact(golden: Path) -> None:
    data, schedule = load_file(golden / "sampler.safetensors"), Schedule.for_sampler("official")
    assert schedule.sigmas == tuple(data["n4.sigmas"].tolist())
    assert schedule.timesteps == tuple(data["n4.timesteps"].tolist())


def test_steps_against_golden(golden: Path) -> None:
    data, schedule = load_file(golden / "sampler.safetensors"), Schedule.for_sampler("official")
    x = data["x0_start"]
    for step in range(schedule.steps):
        v = data[f"step{step}.v"]
        clean = euler(x, v, schedule.sigmas[step], 0.0)
        torch.testing.assert_close(clean, data[f"step{step}.x0_pred"], atol=1e-5, rtol=0)
        x = schedule.advance(x, v, step)
        torch.testing.assert_close(x, data[f"step{step}.x_next"], atol=1e-5, rtol=0)


def test_skip_null_is_the_official_run_without_its_last_forward() -> None:
    full, short = Schedule.for_sampler("official"), Schedule.for_sampler("skip-null")
    assert short.timesteps == full.timesteps[:3]
    assert short.sigmas == (*full.sigmas[:3], 0.0)


def test_unknown_sampler() -> None:
    with pytest.raises(BadInput, match="official, skip-null"):
        Schedule.for_sampler("fast")


def test_step_of_bfloat16_rounds_the_product_then_the_sum() -> None:
    x, v = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125], dtype=torch.bfloat16)
    product = (v.float() * -0.25).bfloat16().float()
    assert torch.equal(euler(x, v, 0.5, 0.25), (x.float() + product).bfloat16())


def test_sink_distance_is_seeded_uniform_and_in_range() -> None:
    draws = [sink_distance(420, block, step) for block in range(20_000) for step in range(4)]
    count = Counter(draws)
    assert set(count) == set(range(4, 31))
    assert max(count.values()) < 1.2 * min(count.values())
    assert draws[:100] == [sink_distance(420, block, step) for block in range(25) for step in range(4)]
    assert draws[:100] != [sink_distance(421, block, step) for block in range(25) for step in range(4)]
