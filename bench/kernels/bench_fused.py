"""The fused ops of a denoising step, each beside the plain torch it replaces.

    python -m pytest bench/kernels/bench_fused.py

The sizes of the 14B model at 704x384 on a GPU; tiny ones on a CPU, where the op is the reference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench.peaks import device
from bench.timing import SETS, implementation, measure

from everface.kernels.fused import audio_inject as audio
from everface.kernels.fused import flow_step as flow
from everface.kernels.fused import gate_norm_modulate as gate_norm
from everface.kernels.fused import norm_rope
from everface.kernels.fused import qk_norm_rope_store as qk
from everface.kernels.linear import quantize_rows as rows

ON_GPU = torch.cuda.is_available()
FRAMES, ROWS, COLS, HEADS, HEAD, FFN = (3, 24, 44, 40, 128, 13824) if ON_GPU else (3, 2, 4, 3, 64, 448)
TOKENS, WIDTH = ROWS * COLS, HEADS * HEAD
SHAPE = f"{FRAMES}x{TOKENS}x{WIDTH}"
SMALL_SETS = 128 if ON_GPU else 1  # so that inputs of 1 MB are not found in a cache of 50
F32, BF16 = torch.float32, torch.bfloat16

# dtype of x, y and gate, affine, modulation, norm_dtype, residual_dtype: the calls of a block in bfloat16. The addition that ends a block or an audio
# injection is part of the norm after it, so a step calls "input" once.
SITES: dict[str, tuple[torch.dtype, bool, bool, bool, bool, torch.dtype, torch.dtype]] = {
    "input": (BF16, False, False, False, True, BF16, F32),
    "end and input": (F32, True, True, False, True, BF16, BF16),
    "audio and input": (BF16, True, False, False, True, BF16, BF16),
    "norm3": (BF16, True, True, True, False, BF16, F32),
    "ffn": (F32, True, False, False, True, F32, F32),
}
BY = pytest.mark.parametrize("by", ["op", "torch", "torch.compile"])


def made(*size: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(size, device=device(), dtype=dtype)


@BY
@pytest.mark.parametrize("out", ["bf16", "fp8"])
@pytest.mark.parametrize("site", SITES)
def test_gate_norm_modulate(benchmark: Any, site: str, out: str, by: str) -> None:
    dtype, added, gated, affine, modulated, norm_dtype, residual_dtype = SITES[site]

    def reference(x: Any, y: Any, gate: Any, pairs: Any) -> object:
        new, u = gate_norm.gate_norm_modulate_reference(x, y, gate, pairs[0], pairs[1], 1e-6, norm_dtype, BF16, residual_dtype)
        return new, (rows.quantize_rows_reference(u) if out == "fp8" else u)

    def op(x: Any, y: Any, gate: Any, pairs: Any) -> object:
        run = gate_norm.gate_norm_modulate_fp8 if out == "fp8" else gate_norm.gate_norm_modulate
        given = {"affine": pairs[0], "modulation": pairs[1], "eps": 1e-6, "norm_dtype": norm_dtype, "residual_dtype": residual_dtype}
        return run(x, y, gate, **given) if out == "fp8" else run(x, y, gate, **given, dtype=BF16)

    calls, run = [], implementation(by, op, reference)
    for _ in range(SETS):
        x, y = made(1, FRAMES, TOKENS, WIDTH, dtype=dtype), made(1, FRAMES, TOKENS, WIDTH) if added else None
        shift, scale, gate = made(1, FRAMES, 3, 1, WIDTH, dtype=F32).unbind(2)
        pair = (made(WIDTH), made(WIDTH)) if affine else None
        given = (x, y, gate if gated else None, (pair, (shift, scale) if modulated else None))
        calls.append(lambda given=given: run(*given))
    u = torch.empty(FRAMES, TOKENS, WIDTH, dtype=torch.float8_e4m3fn if out == "fp8" else BF16, device="meta")
    new = torch.empty_like(u, dtype=residual_dtype) if added else None
    x_like = torch.empty_like(u, dtype=dtype)
    y_like = torch.empty_like(u, dtype=BF16) if added else None
    cost = gate_norm.cost({"x_ptr": x_like, "y_ptr": y_like, "residual_ptr": new, "u_ptr": u})
    measure(benchmark, calls, cost, shape=SHAPE, site=site, out=out, by=by)


@BY
def test_gate_residual(benchmark: Any, by: str) -> None:
    sets = [(made(1, FRAMES, TOKENS, WIDTH, dtype=F32), made(1, FRAMES, TOKENS, WIDTH)) for _ in range(SETS)]
    gate = made(1, FRAMES, 1, WIDTH, dtype=F32)
    op = implementation(by, gate_norm.gate_residual, lambda x, y, g, dtype: gate_norm.gate_residual_reference(x, y, g).to(dtype))
    calls = [lambda s=s: op(*s, gate, BF16) for s in sets]
    x, y = sets[0]
    cost = gate_norm.cost({"x_ptr": x, "y_ptr": y, "residual_ptr": y, "u_ptr": None})
    measure(benchmark, calls, cost, shape=SHAPE, by=by)


@BY
def test_qk_norm_rope_store(benchmark: Any, by: str) -> None:
    tokens = FRAMES * TOKENS
    weight, table = made(WIDTH), made(tokens, HEAD // 2, 2, dtype=F32)
    run = implementation(by, qk.qk_norm_rope_store, qk.qk_norm_rope_store_reference)
    sets = [(made(tokens, 3 * WIDTH).chunk(3, dim=1), made(2, tokens, HEADS, HEAD)) for _ in range(SETS)]
    calls = [lambda qkv=qkv, ring=ring: run(*qkv, weight, weight, 1e-6, table, *ring, 0) for qkv, ring in sets]
    cost = qk.cost({"q_ptr": sets[0][0][0], "ring_k_ptr": sets[0][1], "table_ptr": table})
    measure(benchmark, calls, cost, shape=SHAPE, by=by)


@BY
def test_rms_norm(benchmark: Any, by: str) -> None:
    weight, sets = made(WIDTH), [made(FRAMES * TOKENS, WIDTH) for _ in range(SETS)]
    run = implementation(by, norm_rope.rms_norm, norm_rope.rms_norm_reference)
    cost = norm_rope.norm_rope_cost({"x_ptr": sets[0], "out_ptr": sets[0], "table_ptr": None})
    measure(benchmark, [lambda x=x: run(x, weight, 1e-6) for x in sets], cost, shape=SHAPE, by=by)


@BY
def test_audio_inject(benchmark: Any, by: str) -> None:
    sets = [(made(1, FRAMES, TOKENS, WIDTH), made(1, FRAMES, 2 * WIDTH)) for _ in range(SETS)]
    run = implementation(by, audio.audio_inject, audio.audio_inject_reference)
    x = sets[0][0]
    cost = gate_norm.cost({"x_ptr": x, "y_ptr": None, "residual_ptr": None, "u_ptr": x})
    measure(benchmark, [lambda s=s: run(*s) for s in sets], cost, shape=SHAPE, by=by)


@BY
@pytest.mark.parametrize(("width", "gelu"), [(WIDTH, False), (FFN, False), (FFN, True)], ids=["hidden", "ffn", "ffn-gelu"])
def test_quantize_rows(benchmark: Any, width: int, gelu: bool, by: str) -> None:
    sets = [made(FRAMES * TOKENS, width) for _ in range(SETS)]
    run = implementation(by, rows.quantize_rows, rows.quantize_rows_reference)
    quantized, scale = rows.empty_quantized(sets[0])
    cost = rows.cost({"x_ptr": sets[0], "quantized_ptr": quantized, "scale_ptr": scale})
    measure(benchmark, [lambda x=x: run(x, gelu) for x in sets], cost, shape=f"{FRAMES * TOKENS}x{width}", gelu=gelu, by=by)


@BY
def test_flow_step_tokens(benchmark: Any, by: str) -> None:
    sets = [(made(1, 16, FRAMES, 2 * ROWS, 2 * COLS), made(1, FRAMES, TOKENS, 64)) for _ in range(SMALL_SETS)]
    x, out = sets[0]
    run = implementation(by, flow.flow_step_tokens, flow.flow_step_tokens_reference)
    cost = flow.cost({"x_ptr": x, "out_ptr": out, "next_ptr": x, "size": x.numel()})
    shape = "x".join(map(str, x.shape[1:]))
    measure(benchmark, [lambda s=s: run(*s, (ROWS, COLS), (2, 2), 1.0, 0.86) for s in sets], cost, shape=shape, by=by)
