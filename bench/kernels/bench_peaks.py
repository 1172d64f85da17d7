"""The ceilings of this machine, as a row: TB/s of a large copy, TFLOP/s of square GEMMs.

    python -m pytest bench/kernels/bench_peaks.py

bench/peaks.py says how. Every other bench measures them again in its own process.
"""

from __future__ import annotations

from typing import Any

import torch
from bench.peaks import device_name, peaks
from bench.rows import commit


def test_peaks(benchmark: Any) -> None:
    found = benchmark.pedantic(peaks, rounds=1)
    assert min(found.values()) > 0
    named = {"copy_tb_s" if what == "bytes" else f"{what}_tflop_s": rate / 1e12 for what, rate in found.items()}
    benchmark.extra_info.update(gpu=device_name(), commit=commit(), torch=torch.__version__, **named)
