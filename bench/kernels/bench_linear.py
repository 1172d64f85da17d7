"""The linear layers of a block of the 14B model, in bfloat16 and, from quantized input, in 8 bits by every backend.

    python -m pytest bench/kernels/bench_linear.py

3168 tokens on a GPU, tiny sizes on a CPU. Quantization is not in these figures (see bench_fused), except in `official`, where it
cannot be separated; GELU is, where the layer has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench.peaks import device
from bench.timing import SETS, measure

from everface.kernels.launch import Cost
from everface.kernels.linear import fp8_linear as fp8
from everface.kernels.linear.quantize_rows import quantize_rows

ON_GPU = torch.cuda.is_available()
M, D, FFN = (3168, 5120, 13824) if ON_GPU else (24, 64, 176)
LAYERS = {"qkv": (3 * D, D, False), "out": (D, D, False), "ffn1": (FFN, D, True), "ffn2": (D, FFN, False)}  # N, K, GELU
BACKENDS = ["bf16", "official", "rows", "rows, triton"]


def layer(backend: str, n: int, k: int, gelu: bool) -> Callable[[], object]:
    """One call on its own data."""
    x, w, bias = (torch.randn(size, device=device(), dtype=torch.bfloat16) for size in ((M, k), (n, k), (n,)))
    w /= k**0.5

    def activated(y: torch.Tensor) -> torch.Tensor:
        return F.gelu(y, approximate="tanh") if gelu else y

    if backend == "bf16":
        return lambda: activated(F.linear(x, w, bias))
    if backend == "official":
        quantized, scale = fp8.quantize_tensor(w)
        return lambda: activated(fp8.fp8_linear(x, quantized, scale, bias))
    operands = (*quantize_rows(x), *quantize_rows(w))
    if backend == "rows":  # GELU is part of what quantizes its output for the next one (bench_fused): with it the op would be "rows, triton"
        return lambda: fp8.fp8_linear_rows(*operands, bias, gelu=False, dtype=torch.bfloat16)
    y = torch.empty(M, n, device=device(), dtype=torch.bfloat16)
    return lambda: fp8.launch(*operands, bias, gelu, y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_linear(benchmark: Any, name: str, backend: str) -> None:
    if backend == "rows, triton" and not ON_GPU:
        pytest.skip("the kernel runs on a GPU, or under the interpreter in the tests")
    n, k, gelu = LAYERS[name]
    wide = 2 if backend == "bf16" else 1
    cost = Cost(2 * M * n * k, (M + n) * k * wide + 2 * M * n)
    calls = [layer(backend, n, k, gelu) for _ in range(SETS)]
    measure(benchmark, calls, cost, "bf16" if backend == "bf16" else "fp8", shape=f"{M}x{n}x{k}", layer=name, backend=backend)
