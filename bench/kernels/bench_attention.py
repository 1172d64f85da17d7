"""Attention of the 14B model by every backend, and by torch.compile.

    python -m pytest bench/kernels/bench_attention.py -k "not gluon"

The sizes of 704x384 on a GPU; tiny ones on a CPU, where the op is the reference. A backend that cannot serve is skipped with its reason.
A mistake in the barriers of gluon would hang: `bench.gpu` times it in a process with a limit, once its tests have passed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from bench.peaks import device
from bench.timing import SETS, compiled, measure

from everface.kernels.attention import backend, cross, library_backends, self_attention
from everface.kernels.attention import block_causal as block

ON_GPU = torch.cuda.is_available()
FRAMES, FRAME, HEADS, D, RING, SINK, TEXT, AUDIO = (3, 1056, 40, 128, 12672, 2640, 512, 5) if ON_GPU else (3, 8, 2, 64, 96, 20, 16, 5)
TOKENS, LAUNCHES = FRAMES * FRAME, 8
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def made(*size: int) -> torch.Tensor:
    return torch.randn(size, device=device(), dtype=BF16)


def skip_unless_serves(name: str, dtype: torch.dtype = BF16) -> str:
    """The name, if it can serve here; skips with the reason otherwise."""
    if name in ("triton", "gluon") and not ON_GPU:
        pytest.skip("the kernel runs on a GPU, or under the interpreter in the tests")
    if fault := backend.find_fault(name, device(), dtype, D):
        pytest.skip(f"{name}: {fault}")
    return name


@cache
def reference() -> Callable[..., Any]:
    return compiled(block.block_causal_reference)


@pytest.mark.parametrize("by", ["op", "triton", "gluon", *library_backends.LIBRARIES, "torch.compile"])
@pytest.mark.parametrize("used", [SINK + RING, SINK + RING // 4])
def test_block_causal(benchmark: Any, used: int, by: str) -> None:
    name = skip_unless_serves(by) if by not in ("op", "torch.compile") else by
    calls: list[Callable[[], object]] = []
    for _ in range(SETS):
        case: Any = (*(made(n, HEADS, D) for n in (TOKENS, SINK + RING, SINK + RING)), used)
        if by == "torch.compile":
            calls.append(lambda a=case: reference()(*a))
        elif by == "op":
            calls.append(lambda a=case: self_attention.block_causal(*a))
        else:
            calls.append(lambda a=case: backend.attend(*a, backend=name))
    cost = block.cost(TOKENS, used, HEADS, D, 2)
    measure(benchmark, calls, cost, launches=LAUNCHES, shape=f"{TOKENS}x{used}x{HEADS}x{D}", dtype="bf16", by=by)


@pytest.mark.parametrize("by", ["triton", "gluon"])
@pytest.mark.parametrize("used", [SINK + RING, SINK + RING // 4])
def test_block_causal_fp8(benchmark: Any, used: int, by: str) -> None:
    """Keys and values are quantized before; values are transposed, as in the KV cache."""
    name = skip_unless_serves(by, FP8)
    calls: list[Callable[[], object]] = []
    scales = torch.full((2, HEADS), 0.7, device=device())
    for _ in range(SETS):
        q, k, v = (made(n, HEADS, D).to(FP8) for n in (TOKENS, SINK + RING, SINK + RING))
        vT = v.view(torch.uint8).permute(1, 2, 0).contiguous().view(FP8)
        calls.append(lambda a=(q, k, vT, used, *scales): backend.attend_fp8(*a, backend=name))
    cost = block.cost(TOKENS, used, HEADS, D, 1)
    measure(benchmark, calls, cost, "fp8", LAUNCHES, shape=f"{TOKENS}x{used}x{HEADS}x{D}", dtype="e4m3", by=by)


@pytest.mark.parametrize("by", ["op", *library_backends.LIBRARIES])
@pytest.mark.parametrize("keys", [TEXT, AUDIO])
def test_cross(benchmark: Any, keys: int, by: str) -> None:
    attend = cross.cross if by == "op" else library_backends.load_attention(skip_unless_serves(by))
    batch, tokens = (FRAMES, FRAME) if keys == AUDIO else (1, TOKENS)
    sets = [(made(batch, tokens, HEADS, D), made(batch, keys, HEADS, D), made(batch, keys, HEADS, D)) for _ in range(SETS)]
    cost = cross.cost(batch, tokens, keys, HEADS, D, batch, 2)
    measure(benchmark, [lambda a=a: attend(*a) for a in sets], cost, shape=f"{batch}x{tokens}x{keys}x{HEADS}x{D}", dtype="bf16", by=by)
