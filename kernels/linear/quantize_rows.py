"""Quantization of a matrix to e4m3 with one scale a row: a token of an activation, an output channel of a weight.

Contract
    amax = max(max|x| over the row, 1e-12);   quantized = e4m3(x * (1 / amax * 448)), nearest even;   scale = amax / 448
    with gelu: the same of GELU(x), in its tanh form and float32
    x [..., K] float32, bfloat16 or float16 -> quantized [..., K] float8_e4m3fn, scale [..., 1] float32; quantized * scale ~ x
    Every product and quotient is rounded to float32, in this order. A row depends on itself only.
Cost
    memory: one read of x, one write of e4m3; 131 MB for the 3168 x 13,824 between the two GEMMs of the FFN, 49 MB at 3168 x 5120.
    GELU adds 10 instructions a value, 9 us of issue for those 13,824 columns, under 33 us of memory.
    Rows of 5120 need no separate pass where the op before sees whole rows: see fused/gate_norm_modulate.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.fused.row_primitives import (
    E4M3_MAX,
    MIN_AMAX,
    TILES,
    gelu_tanh,
    load_row,
    quantize_row,
    row_sizes,
    variant,
    wait_for_inputs,
)
from everface.kernels.launch import (
    CompileSpec,
    Cost,
    jit,
    metadata,
    programmatic_launch,
    runs_triton,
    select_tile,
    tl,
)

# --- reference


def quantize_rows_reference(x: Tensor, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Plain torch; also the CPU path."""
    wide = F.gelu(x.float(), approximate="tanh") if gelu else x.float()
    amax = wide.abs().amax(-1, keepdim=True).clamp(min=MIN_AMAX)
    return (wide * (amax.reciprocal() * E4M3_MAX)).to(torch.float8_e4m3fn), amax / E4M3_MAX


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name."""
    return Cost(0, sum(t.numel() * t.element_size() for t in (args["x_ptr"], args["quantized_ptr"], args["scale_ptr"])))


@jit(launch_metadata=metadata("quantize_rows", cost))
def quantize_rows_kernel(
    x_ptr, quantized_ptr, scale_ptr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, GELU: tl.constexpr, FAST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One program a row."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols_a = tl.arange(0, A)
    cols_b = A + tl.arange(0, B)
    a = load_row(x_ptr + row * D, cols_a, cols_a < D)
    b = load_row(x_ptr + row * D, cols_b, cols_b < D)
    if GELU:
        a = gelu_tanh(a, FAST)
        b = gelu_tanh(b, FAST)
    a, b, scale = quantize_row(a, b)
    tl.store(quantized_ptr + row * D + cols_a, a, mask=cols_a < D)
    tl.store(quantized_ptr + row * D + cols_b, b, mask=cols_b < D)
    tl.store(scale_ptr + row, scale)


# --- tiles: those of fused/row_primitives.py

COMPILE = [
    CompileSpec(
        name=f"quantize_rows {width}{' gelu' if gelu else ''}{' pdl' if pdl else ''}",
        kernel=quantize_rows_kernel,
        signature={"x_ptr": "*bf16", "quantized_ptr": "*fp8e4nv", "scale_ptr": "*fp32"},
        constexprs={**row_sizes(width), "GELU": gelu, "FAST": True, "PDL": pdl},
        num_warps=TILES[80][variant(width)].num_warps,
        num_stages=1,
        archs=(90, 100),
    )
    for width, gelu, pdl in ((5120, False, False), (13824, False, False), (13824, True, False), (13824, True, True))
]


# --- op


@torch.library.custom_op("everface::quantize_rows", mutates_args=("quantized", "scale"))
def launch(x: Tensor, quantized: Tensor, scale: Tensor, gelu: bool = False) -> None:
    """The kernel, into outputs that the caller owns. x and quantized contiguous."""
    width = x.shape[-1]
    options = select_tile("quantize_rows", TILES, x.device, variant(width)).options()
    quantize_rows_kernel[(x.numel() // width,)](
        x, quantized, scale, **row_sizes(width), GELU=gelu, FAST=x.is_cuda, **programmatic_launch(x.device), **options
    )  # fmt: skip


@launch.register_fake
def _(*args: Any) -> None:
    return None


def empty_quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors for quantized x and its scales."""
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def writes_e4m3(*tensors: Tensor) -> bool:
    """Whether a kernel can write e4m3 on the device of these: where kernels run, from compute capability 8.9 on."""
    return runs_triton(*tensors) and torch.cuda.get_device_capability(tensors[0].device) >= (8, 9)


def quantize_rows(x: Tensor, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """The op. With gelu it quantizes GELU(x). Returns (quantized, scale)."""
    if not writes_e4m3(x):
        return quantize_rows_reference(x, gelu)
    quantized, scale = empty_quantized(x)
    launch(x.contiguous(), quantized, scale, gelu)
    return quantized, scale
