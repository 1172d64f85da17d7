"""What a block computes between two GEMMs: gated residual, LayerNorm, scale and shift, and quantization for the next GEMM.

Contract
    x' = x + gate * y                              float32, one rounding to residual_dtype (without y: x itself; without gate: 1)
    n  = LayerNorm(x' as norm_dtype) [* weight + bias]      statistics in float32, one rounding to norm_dtype
    u  = n * (1 + scale) + shift                   float32, one rounding to dtype (n itself when there is no modulation)
    x, y [..., D]; gate, shift, scale broadcast against them, one row a latent frame; weight_D, bias_D
    -> x' (dtype of x without y, else residual_dtype: float32, or norm_dtype), u [..., D] in dtype
    gate_norm_modulate_fp8: the same, with u quantized as by quantize_rows: [..., D] e4m3, scales [..., 1] float32
Cost
    memory, at 3168 x 5120 in bfloat16, reading x and y, writing x' and u: 65 MB (a block's input), 162 MB (before text
    attention), 195 MB (before the FFN, x is float32 by then); e4m3 instead of u saves 16 MB here and as much at the next
    GEMM. gate_residual alone: 130 MB.
Rounding
    official: the block's input, norm3 and the head norm in the model's dtype, the norm before the FFN in float32.
    The end of one block and the beginning of the next are one call, with residual_dtype the model's. It gives the bits of the two
    calls one after the other, as the norm reads x' as it was rounded.
    u is rounded to dtype before it is quantized, so the fused op gives the bits of the two ops one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Required, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.cpu import TYPES, native_cpu, operand, runs_native, takes_native
from everface.kernels.fused import native_gradient
from everface.kernels.fused.row_primitives import (
    TILES,
    load_row,
    normalize_row,
    quantize_row,
    round_to,
    row_sizes,
    triton_dtype,
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
from everface.kernels.linear.quantize_rows import empty_quantized, quantize_rows_reference, writes_e4m3

Pair = tuple[Tensor, Tensor]


# --- reference


def gate_residual_reference(x: Tensor, y: Tensor, gate: Tensor | None = None) -> Tensor:
    """x + gate * y in float32; gate None is 1. Plain torch; differentiable; also the CPU path."""
    return x.float() + y.float() if gate is None else torch.addcmul(x.float(), gate, y.float())


def gate_norm_modulate_reference(
    x: Tensor, y: Tensor | None, gate: Tensor | None, affine: Pair | None, modulation: Pair | None, eps: float,
    norm_dtype: torch.dtype, dtype: torch.dtype, residual_dtype: torch.dtype = torch.float32,
) -> Pair:  # fmt: skip
    """Plain torch; differentiable; also the CPU path."""
    if y is not None:
        x = gate_residual_reference(x, y, gate).to(residual_dtype)
    weight, bias = affine or (None, None)
    u = F.layer_norm(x.to(norm_dtype), x.shape[-1:], weight, bias, eps)
    if modulation is not None:
        shift, scale = modulation
        u = torch.addcmul(shift, u.float(), 1 + scale)
    return x, u.to(dtype)


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name: every row read or written once. The rows of modulation stay in the cache."""
    names = ("x_ptr", "y_ptr", "residual_ptr", "u_ptr")
    return Cost(0, sum(t.numel() * t.element_size() for t in (args[n] for n in names) if t is not None))


@jit
def add_residual(x_ptr, y_ptr, gate_ptr, residual_ptr, row, y_row, gate_row, cols, mask):
    """Part of a row of x', stored where there is a y that makes it differ from x."""
    x = load_row(x_ptr + row, cols, mask)
    if y_ptr is not None:
        y = load_row(y_ptr + y_row, cols, mask)
        if gate_ptr is not None:
            y = y * load_row(gate_ptr + gate_row, cols, mask)
        x = x + y
        tl.store(residual_ptr + row + cols, x, mask=mask)
    return x


@jit
def modulate(
    n, weight_ptr, bias_ptr, shift_ptr, scale_ptr, shift_row, scale_row, cols, mask, NORM: tl.constexpr, OUT: tl.constexpr
):  # fmt: skip
    """Part of a row of u from the normalized one, with both roundings."""
    if weight_ptr is not None:
        n = n * load_row(weight_ptr, cols, mask) + load_row(bias_ptr, cols, mask)
    n = round_to(n, NORM)
    if shift_ptr is not None:
        n = n * (1.0 + load_row(scale_ptr + scale_row, cols, mask)) + load_row(shift_ptr + shift_row, cols, mask)
    return round_to(n, OUT)


@jit(launch_metadata=metadata("gate_norm_modulate", cost))
def gate_norm_modulate_kernel(
    x_ptr, y_ptr, gate_ptr, weight_ptr, bias_ptr, shift_ptr, scale_ptr, residual_ptr, u_ptr, u_scale_ptr,
    y_stride, gate_stride, shift_stride, scale_stride, tokens, eps,
    D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, NORM: tl.constexpr, OUT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program a row. Row r has modulation row r // tokens, at a stride of 0 where all rows share one."""
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    frame = token // tokens
    row = token * D
    cols_a = tl.arange(0, A)
    cols_b = A + tl.arange(0, B)
    mask_a = cols_a < D
    mask_b = cols_b < D
    y_row = token * y_stride
    gate_row = frame * gate_stride
    a = add_residual(x_ptr, y_ptr, gate_ptr, residual_ptr, row, y_row, gate_row, cols_a, mask_a)
    b = add_residual(x_ptr, y_ptr, gate_ptr, residual_ptr, row, y_row, gate_row, cols_b, mask_b)
    if u_ptr is not None:
        a, b = normalize_row(round_to(a, NORM), round_to(b, NORM), mask_a, mask_b, eps, D)
        shift_row = frame * shift_stride
        scale_row = frame * scale_stride
        a = modulate(a, weight_ptr, bias_ptr, shift_ptr, scale_ptr, shift_row, scale_row, cols_a, mask_a, NORM, OUT)
        b = modulate(b, weight_ptr, bias_ptr, shift_ptr, scale_ptr, shift_row, scale_row, cols_b, mask_b, NORM, OUT)
        if u_scale_ptr is not None:
            # Beyond the row there are zeros, or a shift of 0, which do not raise the largest value.
            a, b, u_scale = quantize_row(a, b)
            tl.store(u_scale_ptr + token, u_scale)
        tl.store(u_ptr + row + cols_a, a, mask=mask_a)
        tl.store(u_ptr + row + cols_b, b, mask=mask_b)


# --- tiles: those of row_primitives.py

STRIDES = {"y_stride": "i32", "gate_stride": "i32", "shift_stride": "i32", "scale_stride": "i32", "tokens": "i32", "eps": "fp32"}


def compile_spec(name: str, pointers: dict[str, str], norm: Any, archs: tuple[int, ...] = (80, 90, 100), pdl: bool = False) -> CompileSpec:
    """A check of one way to call the kernel at width 5120: pointer name without `_ptr` -> type, those left out are None."""
    names = ("x", "y", "gate", "weight", "bias", "shift", "scale", "residual", "u", "u_scale")
    types = {f"{n}_ptr": pointers[n] for n in names if n in pointers}
    absent = {f"{n}_ptr": None for n in names if n not in pointers}
    constexprs = {**absent, **row_sizes(5120), "NORM": norm, "OUT": triton_dtype(torch.bfloat16), "PDL": pdl}
    return CompileSpec(f"gate_norm_modulate {name}", gate_norm_modulate_kernel, {**types, **STRIDES}, constexprs, 8, 1, archs)


def compile_specs() -> list[CompileSpec]:
    b16, f32 = triton_dtype(torch.bfloat16), triton_dtype(torch.float32)
    modulated = {"shift": "*fp32", "scale": "*fp32"}
    added = {"x": "*fp32", "y": "*bf16", "residual": "*fp32"}
    norm3 = {"x": "*bf16", "y": "*bf16", "gate": "*fp32", "residual": "*fp32", "weight": "*bf16", "bias": "*bf16", "u": "*bf16"}
    return [
        compile_spec("input", {"x": "*bf16", "u": "*bf16", **modulated}, b16),
        compile_spec("norm3", norm3, b16),
        compile_spec("ffn", {**added, "u": "*bf16", **modulated}, f32),
        compile_spec("input fp8", {"x": "*bf16", "u": "*fp8e4nv", "u_scale": "*fp32", **modulated}, b16, (90, 100)),
        compile_spec("input fp8 pdl", {"x": "*bf16", "u": "*fp8e4nv", "u_scale": "*fp32", **modulated}, b16, (90, 100), pdl=True),
        compile_spec("norm3 fp8", {**norm3, "u": "*fp8e4nv", "u_scale": "*fp32"}, b16, (90, 100)),
        compile_spec("ffn fp8", {**added, "u": "*fp8e4nv", "u_scale": "*fp32", **modulated}, f32, (90, 100)),
        compile_spec("end", {**added, "residual": "*bf16", "gate": "*fp32"}, f32),
        compile_spec("end and input", {**added, **modulated, "residual": "*bf16", "gate": "*fp32", "u": "*bf16"}, b16),
    ]


COMPILE = compile_specs() if tl is not None else []


# --- op


def modulation_rows(m: Tensor | None, x: Tensor) -> tuple[Tensor | None, int]:
    """Rows of modulation, and their stride: 0 when one row serves all, else one row a frame of x [..., tokens, D]."""
    if m is None or m.numel() == x.shape[-1]:
        return (None if m is None else m.contiguous()), 0
    table = m.expand(*x.shape[:-2], 1, x.shape[-1]).flatten(0, -2)  # a frame is small: copied where it cannot be viewed
    return table, table.stride(0)


def addend_rows(y: Tensor | None, x: Tensor) -> tuple[Tensor | None, int]:
    """Rows of y, and their stride: 0 when one row serves all rows of x, or there is no y."""
    if y is None:
        return None, 0
    width = x.shape[-1]
    y = y.contiguous() if y.numel() in (x.numel(), width) else y.expand(x.shape).contiguous()
    return y, 0 if y.numel() == width and y.numel() != x.numel() else width


@torch.library.custom_op("everface::gate_norm_modulate", mutates_args=("residual", "u", "u_scale"))
def launch(
    x: Tensor, y: Tensor | None, gate: Tensor | None, weight: Tensor | None, bias: Tensor | None, shift: Tensor | None,
    scale: Tensor | None, eps: float, norm_dtype: torch.dtype, dtype: torch.dtype, residual: Tensor | None, u: Tensor | None,
    u_scale: Tensor | None,
) -> None:  # fmt: skip
    """The kernel, into outputs that the caller owns; u and u_scale both None: the residual alone."""
    width, x = x.shape[-1], x.contiguous()
    y, y_stride = addend_rows(y, x)
    gates, shifts, scales = (modulation_rows(m, x) for m in (gate, shift, scale))
    options = select_tile("gate_norm_modulate", TILES, x.device, variant(width)).options()
    gate_norm_modulate_kernel[(x.numel() // width,)](
        x, y, gates[0], weight, bias, shifts[0], scales[0], residual, u, u_scale,
        y_stride, gates[1], shifts[1], scales[1], x.shape[-2], eps,
        **row_sizes(width), NORM=triton_dtype(norm_dtype), OUT=triton_dtype(dtype), **programmatic_launch(x.device), **options,
    )  # fmt: skip


@launch.register_fake
def _(*args: Any) -> None:
    return None


def run_native(
    x: Tensor, y: Tensor | None, gate: Tensor | None, weight: Tensor | None, bias: Tensor | None, shift: Tensor | None,
    scale: Tensor | None, eps: float, norm_dtype: torch.dtype, dtype: torch.dtype, residual: Tensor | None, u: Tensor | None,
    u_scale: Tensor | None,
) -> None:  # fmt: skip
    """csrc/cpu, with the arguments of `launch`; u_scale is None."""
    width, x = x.shape[-1], x.contiguous()
    y, y_stride = addend_rows(y, x)
    gates, shifts, scales = (operand(*modulation_rows(m, x)) for m in (gate, shift, scale))
    native_cpu().gate_norm_modulate(
        operand(x, width), operand(y, y_stride), gates, operand(weight, 0), operand(bias, 0), shifts, scales, operand(residual, width),
        operand(u, width), norm_dtype == torch.bfloat16, eps, x.numel() // width, x.shape[-2], width, torch.get_num_threads(),
    )  # fmt: skip


def is_framewise(x: Tensor, *modulation: Tensor | None) -> bool:
    """Whether the kernel can index these: [..., tokens, D] or one row, one row of modulation a frame or one in all."""
    return x.dim() > 1 and all(m is None or m.numel() == x.shape[-1] or m.shape[-2] == 1 for m in modulation)


def select_runner(
    x: Tensor, given: list[Tensor], modulation: tuple[Tensor | None, ...], dtypes: tuple[torch.dtype, ...]
) -> Callable[..., None] | None:  # fmt: skip
    """What runs on these tensors with results in these dtypes: the kernel, csrc/cpu, or None, the reference."""
    if not is_framewise(x, *modulation):
        return None
    if runs_triton(*given):
        return launch
    wide = all(m is None or m.dtype == torch.float32 for m in modulation)
    return run_native if wide and all(dtype in TYPES for dtype in dtypes) and runs_native(*given) else None


def trains_rows(x: Tensor, *modulation: Tensor) -> bool:
    """Whether the gradients of csrc/cpu take a float32 residual and its modulation."""
    return native_gradient.trains_native(x, *modulation) and x.dtype == torch.float32 and is_framewise(x, *modulation)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """x + gate * y in float32, one rounding to dtype. Alone it closes a block."""
    if gate is not None and dtype == torch.float32 and x.shape == y.shape and trains_rows(x, gate) and takes_native(y):
        return native_gradient.add_gated(x, y, gate)
    run = select_runner(x, [t for t in (x, y, gate) if t is not None], (gate,), (dtype,))
    if run is None:
        return gate_residual_reference(x, y, gate).to(dtype)
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    run(x, y, gate, None, None, None, None, 0.0, torch.float32, torch.float32, out, None, None)
    return out


class NormOptions(TypedDict, total=False):
    """Keyword arguments of the two ops. `affine` is (weight_D, bias_D), `modulation` is (shift, scale); both may be absent."""

    affine: Pair | None
    modulation: Pair | None
    eps: Required[float]
    norm_dtype: Required[torch.dtype]
    dtype: Required[torch.dtype]
    residual_dtype: torch.dtype  # of x' where y is added: float32, the default, or norm_dtype


def _given(x: Tensor, y: Tensor | None, gate: Tensor | None, options: NormOptions) -> list[Tensor]:
    affine, modulation = options.get("affine") or (None, None), options.get("modulation") or (None, None)
    return [t for t in (x, y, gate, *affine, *modulation) if t is not None]


def _reference(x: Tensor, y: Tensor | None, gate: Tensor | None, options: NormOptions) -> Pair:
    return gate_norm_modulate_reference(
        x, y, gate, options.get("affine"), options.get("modulation"), options["eps"], options["norm_dtype"], options["dtype"],
        options.get("residual_dtype", torch.float32),
    )  # fmt: skip


def _run_into(
    run: Callable[..., None], u: Tensor, u_scale: Tensor | None, x: Tensor, y: Tensor | None, gate: Tensor | None, options: NormOptions
) -> Tensor:  # fmt: skip
    """Writes u, and its scale if it is quantized. Returns x'."""
    norm_dtype, residual_dtype = options["norm_dtype"], options.get("residual_dtype", torch.float32)
    residual = None
    if y is not None:
        if residual_dtype not in (torch.float32, norm_dtype):
            raise ValueError(f"a residual in {residual_dtype} before a norm in {norm_dtype}: the kernel rounds once")
        residual = torch.empty_like(x, dtype=residual_dtype, memory_format=torch.contiguous_format)
    affine, modulation = options.get("affine") or (None, None), options.get("modulation") or (None, None)
    run(x, y, gate, *affine, *modulation, options["eps"], norm_dtype, options["dtype"], residual, u, u_scale)
    return x if residual is None else residual


def gate_norm_modulate(x: Tensor, y: Tensor | None = None, gate: Tensor | None = None, **options: Unpack[NormOptions]) -> Pair:
    """The op. Returns (x', u)."""
    modulation = options.get("modulation")
    if modulation and not options.get("affine") and options["dtype"] == torch.bfloat16 and trains_rows(x, *modulation):
        x = x if y is None else gate_residual(x, y, gate)
        return x, native_gradient.modulate(x, *modulation, options["eps"])
    dtypes = options["norm_dtype"], options["dtype"], options.get("residual_dtype", torch.float32)
    run = select_runner(x, _given(x, y, gate, options), (gate, *(modulation or ())), dtypes)
    if run is None:
        return _reference(x, y, gate, options)
    u = torch.empty_like(x, dtype=options["dtype"], memory_format=torch.contiguous_format)
    return _run_into(run, u, None, x, y, gate, options), u


def gate_norm_modulate_fp8(
    x: Tensor, y: Tensor | None = None, gate: Tensor | None = None, **options: Unpack[NormOptions]
) -> tuple[Tensor, Pair]:  # fmt: skip
    """The op with u quantized for an 8-bit GEMM. Returns (x', (quantized, scale))."""
    if not (writes_e4m3(*_given(x, y, gate, options)) and is_framewise(x, gate, *(options.get("modulation") or ()))):
        residual, u = _reference(x, y, gate, options)
        return residual, quantize_rows_reference(u)
    quantized, u_scale = empty_quantized(x)
    return _run_into(launch, quantized, u_scale, x, y, gate, options), (quantized, u_scale)
