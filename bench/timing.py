"""Times one op for pytest-benchmark and records its share of the machine's nearest ceiling.

On a GPU a round is one CUDA graph of several launches, so that it times the GPU and not the CPU that launches; the launches cycle
through several sets of inputs, so that none finds its own in the cache. The share is of peaks measured in the same process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.peaks import device_name, peaks
from everface.kernels.launch import Cost

CALLS = 20  # launches in a graph by default
SETS = 4 if torch.cuda.is_available() else 1  # sets of inputs to cycle through


def commit() -> str:
    """Of the tree, or "unknown" where there is no git or no repository: `bench.gpu --commit` fills it in."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def compiled(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as torch.compile makes it. Skips on a CPU, where compiling takes longer than the rest."""
    if not torch.cuda.is_available():
        pytest.skip("torch.compile is compared on a GPU only")
    torch.compiler.reset()
    return torch.compile(reference, dynamic=False)


def implementation(by: str, op: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """The op, its reference, or the reference compiled."""
    return op if by == "op" else compiled(reference) if by == "torch.compile" else reference


def count_launches(call: Callable[[], object]) -> int | None:
    """Kernels, copies and fills that `call` puts on the GPU, as the profiler counts them; None without a GPU, or if it counts none."""
    if not torch.cuda.is_available():
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    on_device = [e for e in seen.events() or [] if e.device_type.name == "CUDA"]
    return len(on_device) or None


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
    with torch.inference_mode():
        for call in calls:
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(launches):
                    calls[i % len(calls)]()

            def once() -> None:
                graph.replay()
                torch.cuda.synchronize()

            benchmark.pedantic(once, rounds=20, warmup_rounds=3)
            done = launches
        else:
            benchmark.pedantic(calls[0], rounds=3, warmup_rounds=1)
            done = 1
    benchmark.extra_info.update(gpu=device_name(), commit=commit(), flops=cost.flops, bytes=cost.bytes, calls=done, **info)
    if benchmark.stats is None:  # --benchmark-disable
        return
    call_s, ceilings = benchmark.stats.stats.median / done, peaks()
    flops = ceilings.get(precision, float("inf"))
    shares = {"bytes": cost.bytes / call_s / ceilings["bytes"], "flops": cost.flops / call_s / flops}
    nearest = max(shares, key=lambda name: shares[name])
    benchmark.extra_info.update(call_us=1e6 * call_s, bound=nearest, percent_of_peak=100 * shares[nearest])
