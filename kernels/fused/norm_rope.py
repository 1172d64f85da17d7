"""RMS norm of queries and keys and their rotary embedding, each alone: what qk_norm_rope_store does in one pass with the ring write.

Contract
    rms_norm   x / sqrt(mean(x^2 over D) + eps) * weight, over the whole width before the split into heads;
               statistics in float32, one rounding to x's dtype, then times the weight
    rotate     pair (x[2j], x[2j+1]) of every head as a complex number times (cos + i sin)[token, j];
               computed in float32, one rounding to x's dtype
    x [..., D] or [..., T, H, d], weight_D in x's dtype, table_TP2 float32 (cos, sin) with P = d/2 -> like x
    The queries of text and audio are only normalized, the keys of the sink are only rotated. Rotated keys end in e4m3 (nearest to what
    would be stored, saturated) where the attention reads e4m3.
Cost
    memory: 65 MB to read and write in bf16 at 3168 x 5120.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from everface.kernels.cpu import native_cpu, operand, runs_native
from everface.kernels.fused.native_gradient import normalize, trains_native, turn
from everface.kernels.fused.row_primitives import E4M3, TILES, load_row, round_to, row_sizes, to_e4m3, variant, wait_for_inputs
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


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension, rounded before the weight as the official model does. Plain torch; differentiable."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight_D


def rotate_reference(x_THd: Tensor, table_TP2: Tensor) -> Tensor:
    """Rotate interleaved pairs. Leading batch dimensions of x share the table. Plain torch; differentiable."""
    x_THP = torch.view_as_complex(x_THd.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(x_THP * torch.view_as_complex(table_TP2)[:, None]).flatten(-2).to(x_THd.dtype)


def norm_rope_reference(x_TD: Tensor, weight_D: Tensor, eps: float, table_TP2: Tensor, heads: tuple[int, int]) -> Tensor:
    """Both, one after the other, split into (heads, width): [T, H, d]."""
    return rotate_reference(rms_norm_reference(x_TD, weight_D, eps).unflatten(-1, heads), table_TP2)


# --- kernel


@jit
def rotate_pairs(x, table_ptr, cols, mask, HEAD: tl.constexpr, N: tl.constexpr, DTYPE: tl.constexpr):
    """Part of a row, N columns, with its pairs rotated. A token's table serves every head: it is read again from the cache."""
    cos, sin = tl.split(tl.reshape(load_row(table_ptr, cols % HEAD, mask), [N // 2, 2]))
    even, odd = tl.split(tl.reshape(x, [N // 2, 2]))
    return round_to(tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [N]), DTYPE)


@jit
def norm_rope(
    x_ptr, weight_ptr, table_ptr, out_ptr, eps, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, HEAD: tl.constexpr
):  # fmt: skip
    """One row from x to out: RMS norm over all of it (with a weight), then the rotation of every head (with a table)."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    cols_a = tl.arange(0, A)
    cols_b = A + tl.arange(0, B)
    mask_a = cols_a < D
    mask_b = cols_b < D
    a = load_row(x_ptr, cols_a, mask_a)
    b = load_row(x_ptr, cols_b, mask_b)
    if weight_ptr is not None:
        factor = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / D + eps)
        a = round_to(round_to(a * factor, DTYPE) * load_row(weight_ptr, cols_a, mask_a), DTYPE)
        b = round_to(round_to(b * factor, DTYPE) * load_row(weight_ptr, cols_b, mask_b), DTYPE)
    if table_ptr is not None:
        a = rotate_pairs(a, table_ptr, cols_a, mask_a, HEAD, A, DTYPE)
        b = rotate_pairs(b, table_ptr, cols_b, mask_b, HEAD, B, DTYPE)
    tl.store(out_ptr + cols_a, a, mask=mask_a)
    tl.store(out_ptr + cols_b, b, mask=mask_b)


def norm_rope_cost(args: dict[str, Any]) -> Cost:
    """Of one launch of norm_rope_kernel, from its arguments by name."""
    x, table = args["x_ptr"], args["table_ptr"]
    return Cost(0, x.numel() * (x.element_size() + args["out_ptr"].element_size()) + (0 if table is None else table.numel() * 4))


@jit(launch_metadata=metadata("norm_rope", norm_rope_cost))
def norm_rope_kernel(
    x_ptr, weight_ptr, table_ptr, out_ptr, tokens, pitch, eps,
    D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, HEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One of the two alone, one program a row: the norm of a query of text or audio, the rotation of a key of the sink. Every `tokens` rows
    start again in the table, and `pitch` elements further in out."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    if table_ptr is not None:
        table_ptr += row % tokens * HEAD
    out_ptr += row // tokens * pitch + row % tokens * D
    norm_rope(x_ptr + row * D, weight_ptr, table_ptr, out_ptr, eps, D, A, B, HEAD)


# --- tiles: those of row_primitives.py

COMPILE = [
    CompileSpec(
        name=name,
        kernel=norm_rope_kernel,
        signature={"x_ptr": "*bf16", given: kind, "out_ptr": out, "tokens": "i32", "pitch": "i32", "eps": "fp32"},
        constexprs={absent: None, **row_sizes(5120), "HEAD": 128, "PDL": name.endswith("pdl")},
        num_warps=TILES[80]["wide"].num_warps,
        num_stages=1,
        archs=archs,
    )
    for name, given, kind, absent, out, archs in (
        ("rms_norm", "weight_ptr", "*bf16", "table_ptr", "*bf16", (80, 90, 100)),
        ("rms_norm pdl", "weight_ptr", "*bf16", "table_ptr", "*bf16", (90, 100)),
        ("rotate", "table_ptr", "*fp32", "weight_ptr", "*bf16", (80, 90, 100)),
        ("rotate to e4m3", "table_ptr", "*fp32", "weight_ptr", "*fp8e4nv", (90, 100)),
    )
]


# --- op


@torch.library.custom_op("everface::norm_rope", mutates_args=("out",))
def launch_rows(x: Tensor, weight: Tensor | None, table: Tensor | None, eps: float, out: Tensor) -> None:
    """norm_rope_kernel over x [rows, D], contiguous. Row r takes row r mod T of the table and ends in out[r // T, r mod T], of which
    every out[n] is contiguous; T = 1 without a table."""
    rows, width = x.shape
    assert (weight is None or weight.dtype == x.dtype) and out[0].is_contiguous()
    tokens, head = (1, 2) if table is None else (table.shape[0], 2 * table.shape[1])
    options = select_tile("norm_rope", TILES, x.device, variant(width)).options()
    norm_rope_kernel[(rows,)](x, weight, table, out, tokens, out.stride(0), eps, **row_sizes(width), HEAD=head, **programmatic_launch(x.device), **options)


@launch_rows.register_fake
def _(*args: Any) -> None:
    return None


def run_rows_native(x: Tensor, weight: Tensor | None, table: Tensor | None, eps: float, out: Tensor) -> None:
    """csrc/cpu, with the arguments of `launch_rows`."""
    (rows, width), (tokens, heads) = x.shape, (1, 1) if table is None else (table.shape[0], x.shape[1] // (2 * table.shape[1]))
    addresses = (0 if t is None else t.data_ptr() for t in (weight, table))
    skip = out.stride(0) - tokens * width
    native_cpu().norm_rope(operand(x, width), operand(out, width), *addresses, eps, rows, tokens, skip, width, heads, torch.get_num_threads())


def select_runner(*given: Tensor) -> Callable[..., None] | None:
    """What runs on these tensors: the kernel, csrc/cpu, or None, the reference."""
    if runs_triton(*given):
        return launch_rows
    return run_rows_native if runs_native(*given) else None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The norm alone, an op: x [..., D] -> the same."""
    if x.dtype == torch.bfloat16 and weight_D.dtype == torch.float32 and trains_native(x, weight_D):
        return normalize(x, weight_D, eps)
    run = select_runner(x, weight_D) if x.dtype == weight_D.dtype else None
    if run is None:
        return rms_norm_reference(x, weight_D, eps)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty_like(rows)
    run(rows, weight_D, None, eps, out)
    return out.view(x.shape)


def rotate(x_THd: Tensor, table_TP2: Tensor, out: Tensor | None = None) -> Tensor:
    """The rotation alone, an op: x [..., T, H, d], whose leading batch dimensions share the table. Returns `out`, if given: [N, T, H, d]
    like x, every out[n] contiguous; of e4m3 it takes quantized values, on GPUs that have e4m3."""
    if out is None and x_THd.dtype == torch.bfloat16 and trains_native(x_THd, table_TP2):
        return turn(x_THd, table_TP2)
    run = select_runner(x_THd, table_TP2)
    if run is run_rows_native and out is not None and out.dtype != x_THd.dtype:
        run = None  # csrc/cpu does not quantize
    if run is None:
        rotated = rotate_reference(x_THd, table_TP2)
        if out is None:
            return rotated
        return out.copy_(to_e4m3(rotated) if out.dtype == E4M3 else rotated)
    rows = x_THd.reshape(-1, x_THd.shape[-2] * x_THd.shape[-1]).contiguous()
    if out is None:
        out = torch.empty_like(x_THd, memory_format=torch.contiguous_format)
    run(rows, None, table_TP2.contiguous(), 0.0, out.view(-1, *x_THd.shape[-3:]))
    return out
