"""Measured peaks of this machine: the ceilings for every other figure.

    python -m bench.peaks            one line of JSON: bytes and operations a second, and the device they were measured on

Copy bandwidth counts what is read and what is written. GEMMs are of random data: zeros draw less power and run faster than
real data. On a CPU the sizes are small and the figures serve to show that it runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache

import torch

from everface.kernels.linear.fp8_linear import quantize_tensor, scaled_gemm_native

ROUNDS = 10


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def best_s(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few rounds, after one that warms up. Rounds of a GPU are timed by its own clock."""
    call()
    times: list[float] = []
    for _ in range(ROUNDS):
        if torch.cuda.is_available():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return min(times)


def copy_bandwidth() -> float:
    """Bytes read and written a second by one large copy, far beyond any cache on a GPU."""
    source = torch.empty(2**30 if torch.cuda.is_available() else 2**22, dtype=torch.uint8, device=device()).random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / best_s(lambda: target.copy_(source))


def matmul_flops(dtype: torch.dtype) -> float:
    """Operations a second of one square GEMM; multiply and add count as two. float8_e4m3fn goes through torch._scaled_mm."""
    n = 8192 if torch.cuda.is_available() else 128
    a, b = (torch.randn(n, n, device=device(), dtype=torch.bfloat16) for _ in range(2))
    if dtype == torch.float8_e4m3fn:
        (quantized_a, scale_a), (quantized_b, scale_b) = quantize_tensor(a), quantize_tensor(b)
        return 2 * n**3 / best_s(lambda: scaled_gemm_native(quantized_a, scale_a, quantized_b, scale_b, None, torch.bfloat16))
    a, b = a.to(dtype), b.to(dtype)
    return 2 * n**3 / best_s(lambda: a @ b)


@cache
def peaks() -> dict[str, float]:
    """Measured once a process: bytes a second as `bytes`, operations a second as `bf16` and, where the GPU has it, `fp8`."""
    found = {"bytes": copy_bandwidth(), "bf16": matmul_flops(torch.bfloat16)}
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9):
        found["fp8"] = matmul_flops(torch.float8_e4m3fn)
    return found


if __name__ == "__main__":
    print(json.dumps({"device": device_name(), "torch": torch.__version__, "peaks": peaks()}))
