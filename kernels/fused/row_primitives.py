"""Device functions of the ops that see whole rows. A row is held in registers as two parts, each of a power of two.

    5120 = 4096 + 1024     1536 = 1024 + 512     192 = 128 + 64     1024 = 512 + 512     13,824 = 8192 + 5632 of 8192

Triton's blocks are powers of two: one block a row would mask 3072 of 8192 lanes of every access at width 5120, and a loop over
smaller blocks would read the row again for every statistic. Two parts read it once. Both are masked, so any width works.
Sums are float32, in any dtype of the row.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from everface.kernels.launch import Tiles, jit, tile, tl

E4M3, E4M3_MAX = torch.float8_e4m3fn, 448.0
MIN_AMAX = 1e-12  # the largest value of a row of zeros, for its scale
TILES: Tiles = {80: {"narrow": tile(4, 1), "wide": tile(8, 1), "long": tile(16, 1)}}
"""No load pipeline, as nothing loops. 8 warps hold 20 values of a row of 5120 a thread, at most 64 registers in all: 4 programs
an SM, 528 on 132 SMs, so that 3168 rows are 6 full waves. Rows beyond 8192 take 16 warps to hold as little a thread."""


def to_e4m3(x: Tensor) -> Tensor:
    """e4m3 nearest to x, saturated; NaN stays NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def row_sizes(width: int) -> dict[str, int]:
    """The constexpr sizes of a row: D = width, A the largest power of two below it, B the smallest that covers the rest."""
    a = 1 << ((width - 1).bit_length() - 1)
    return {"D": width, "A": a, "B": 1 << (width - a - 1).bit_length()}


def variant(width: int) -> Hashable:
    """Which tile a row takes."""
    return "narrow" if width <= 1024 else "wide" if width <= 8192 else "long"


def triton_dtype(dtype: torch.dtype) -> object:
    """Triton's name of a dtype, for a constexpr argument."""
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


@jit
def wait_for_inputs(PDL: tl.constexpr):
    """Wait until the kernel before this one has finished and its writes are visible. Before any access of memory: the kernels after it
    rely on it too, as each waits for its direct predecessor only."""
    if PDL:
        tl.extra.cuda.gdc_wait()  # pyright: ignore[reportAttributeAccessIssue]  Triton fills this module when it is imported


@jit
def load_row(ptr, cols, mask):
    """Part of a row, widened at once: the interpreter does no arithmetic in 16 bits."""
    return tl.load(ptr + cols, mask=mask, other=0.0).to(tl.float32)


@jit
def round_to(value, DTYPE: tl.constexpr):
    """The float32 nearest to what DTYPE can hold."""
    return value.to(DTYPE).to(tl.float32)


@jit
def normalize_row(a, b, mask_a, mask_b, eps, D: tl.constexpr):
    """(row - mean) / sqrt(variance + eps), the variance from the centered row."""
    mean = (tl.sum(a, 0) + tl.sum(b, 0)) / D
    a = tl.where(mask_a, a - mean, 0.0)
    b = tl.where(mask_b, b - mean, 0.0)
    factor = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / D + eps)
    return a * factor, b * factor


@jit
def quantize_row(a, b):
    """Both parts in e4m3, and the scale. No clamp: the largest value becomes 448, give or take a rounding."""
    amax = tl.maximum(tl.maximum(tl.max(tl.abs(a), 0), tl.max(tl.abs(b), 0)), 1e-12)
    factor = tl.div_rn(1.0, amax) * 448.0
    return (a * factor).to(tl.float8e4nv), (b * factor).to(tl.float8e4nv), tl.div_rn(amax, 448.0)


@jit
def gelu_tanh(y, FAST: tl.constexpr):
    """GELU in its tanh form, in float32: y/2 (1 + tanh(z)). FAST: by one instruction, within 2^-11 of tanh, which the interpreter
    does not have; else as y sigmoid(2 z)."""
    if FAST:
        z = y * (0.7978845608028654 + 0.035677408136300125 * y * y)
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1)
        y = 0.5 * y
        y = y * t + y
    else:
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    return y
