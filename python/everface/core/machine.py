"""Properties of this machine."""

from __future__ import annotations

import os
import time

GEMM_SIDE, ROUNDS = 768, 7  # 1 to 10 ms each: as large as a GEMM of a small model, long enough for a clock
WORTH = 1.3


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def live_threads(dtype: str) -> int | None:
    """CPU threads for live video: 1 where a GEMM is hardly faster on all cores, else None, torch's choice. Measures for some 0.1 s.

    A cloud's cores are often halves of one: then two threads are no faster than one, but every operation waits for the later of them.
    `dtype`: what will be computed in, by torch's name; float32 for one that torch has not. Not while other threads of this process use torch: it sets torch's number of threads.
    """
    import torch

    before = torch.get_num_threads()
    if before < 2:
        return None
    a = torch.ones(GEMM_SIDE, GEMM_SIDE, dtype=getattr(torch, dtype, torch.float32))
    best = {1: float("inf"), before: float("inf")}
    try:
        for _ in range(ROUNDS):
            for threads in best:
                torch.set_num_threads(threads)
                begin = time.perf_counter()
                torch.mm(a, a)
                best[threads] = min(best[threads], time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return None if best[1] > WORTH * best[before] else 1
