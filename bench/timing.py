"""Times one op for pytest-benchmark and records its share of the machine's nearest ceiling.

On a GPU a round is one CUDA graph of several launches between two CUDA events, so that it times the GPU and not the CPU that launches; an op
below SHORT_US is launched SHORT_CALLS times, so that the start of the graph does not count. Launches cycle through several sets of inputs,
so that none finds its own in the cache. The share is of peaks measured in the same process.

Nothing here profiles: once CUPTI is loaded, replays are slower until the process ends. bench/step/bench_launches.py counts launches.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bench.peaks import device_name, peaks
from bench.rows import commit
from everface.kernels.launch import Cost

CALLS = 20  # launches in a graph by default
SHORT_US, SHORT_CALLS = 50.0, 100
ROUNDS, WARM = 20, 3
SETS = 4 if torch.cuda.is_available() else 1  # sets of inputs to cycle through


def compiled(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as torch.compile makes it. Skips on a CPU, where compiling takes longer than the rest."""
    if not torch.cuda.is_available():
        pytest.skip("torch.compile is compared on a GPU only")
    torch.compiler.reset()
    return torch.compile(reference, dynamic=False)


def implementation(by: str, op: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """The op, its reference, or the reference compiled."""
    return op if by == "op" else compiled(reference) if by == "torch.compile" else reference


def calls_of(call_us: float, calls: int) -> int:
    """Launches of a graph whose op takes so long: `calls`, but enough of a short one."""
    return max(calls, SHORT_CALLS) if call_us < SHORT_US else calls


def capture(calls: Sequence[Callable[[], object]], launches: int) -> torch.cuda.CUDAGraph:
    """A graph of so many launches of the calls in turn. They have run before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            calls[i % len(calls)]()
    return graph


def replay_us(graph: torch.cuda.CUDAGraph) -> float:
    """Of one replay, by the clock of the GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end)


def measure(
    benchmark: Any,
    calls: Sequence[Callable[[], object]],
    cost: Cost,
    precision: str = "bf16",
    launches: int = CALLS,
    **info: object,
) -> None:
    """Time `calls`, the same op on different inputs, each of this `cost`; `info` goes into the record as it is.
    `launches` of them are a round on a GPU: fewer for what takes many milliseconds."""
    rounds_us: list[float] = []
    with torch.inference_mode():
        for call in calls:
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            graph = capture(calls, launches)
            replay_us(graph)
            needed = calls_of(replay_us(graph) / launches, launches)
            if needed > launches:
                graph, launches = capture(calls, needed), needed
            benchmark.pedantic(lambda: rounds_us.append(replay_us(graph)), rounds=ROUNDS, warmup_rounds=WARM)
        else:
            benchmark.pedantic(calls[0], rounds=3, warmup_rounds=1)
            launches = 1
    benchmark.extra_info.update(gpu=device_name(), commit=commit(), flops=cost.flops, bytes=cost.bytes, calls=launches, **info)
    if benchmark.stats is None:  # --benchmark-disable
        return
    round_s = statistics.median(rounds_us[-ROUNDS:]) / 1e6 if rounds_us else benchmark.stats.stats.median
    call_s, ceilings = round_s / launches, peaks()
    flops = ceilings.get(precision, float("inf"))
    shares = {"bytes": cost.bytes / call_s / ceilings["bytes"], "flops": cost.flops / call_s / flops}
    nearest = max(shares, key=lambda name: shares[name])
    benchmark.extra_info.update(call_us=1e6 * call_s, bound=nearest, percent_of_peak=100 * shares[nearest])
