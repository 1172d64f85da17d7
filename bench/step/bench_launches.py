"""How many kernels, copies and fills a captured step puts on the GPU, beside what was counted without one.

    python -m pytest bench/step/bench_launches.py --attention auto

In a process apart from every timing: the profiler's CUPTI slows the replays of its process until it ends. The one round is not a figure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench.attention import deployment, parametrize, select
from bench.peaks import device, device_name
from bench.rows import commit
from bench.step.captured import CFG, make_inputs, quantize_cache, step
from bench.stream.random14b import LATENT, random_dit
from tests.runtime.launches import predicted

from everface.weights.quantize import quantize_for_dtype

NAME = 90  # characters of a kernel's name; templates are longer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc)


def count_launches(call: Callable[[], object]) -> dict[str, tuple[int, float]] | None:
    """Kernels, copies and fills of one call by name, each with its count and its milliseconds in all, the longest first; None without a GPU,
    or if the profiler counts none."""
    if not torch.cuda.is_available():
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = {}
    for event in seen.events() or []:
        if event.device_type.name == "CUDA":
            n, ms = found.get(event.name[:NAME], (0, 0.0))
            found[event.name[:NAME]] = (n + 1, ms + event.time_range.elapsed_us() / 1e3)
    return dict(sorted(found.items(), key=lambda item: -item[1][1])) or None


def test_launches(benchmark: Any, gemms: str, attention: str) -> None:
    chosen = deployment(gemms, attention, device().type)
    selected = select(chosen, CFG.head_dim)
    dit = random_dit(CFG, device())
    given = make_inputs(dit)
    with torch.inference_mode():
        quantize_for_dtype(dit, chosen.dtype)
        run = step(dit, quantize_cache(dit, given))
        run()
        found: dict[str, tuple[int, float]] | None = benchmark.pedantic(count_launches, (run,), rounds=1)
    expected = predicted(CFG, *LATENT, chosen.dtype).total()
    launches = sum(n for n, _ in found.values()) if found else None
    benchmark.extra_info.update(
        gpu=device_name(), commit=commit(), dtype=chosen.dtype, attention=attention, launches=launches, launches_predicted=expected, kernels=found,
        **selected,
    )  # fmt: skip
