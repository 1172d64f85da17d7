"""qk_norm_rope_store for attention in e4m3: rotated queries and the ring slot of the block are quantized, values transposed.

Contract
    q = e4m3(rotate(rms_norm(q, weight_q))), ring_k[start:start+T] = e4m3(rotate(rms_norm(k, weight_k))),
    ring_vT[h, :, start:start+T] = e4m3(v * v_factor[h])^T
    rms_norm, rotate, their roundings and the inputs as in qk_norm_rope_store; e4m3 is made from the rounded values, nearest even, saturated
    The caller divides the weights by the scales of q and k; a power of two changes no rounding.
    ring_k_SHd float8_e4m3fn, contiguous; ring_vT_HdS float8_e4m3fn, the slots of a channel side by side, channels `pitch` apart, both
    written in place; v_factor_H float32 -> q_THd float8_e4m3fn
Cost
    memory: 146 MB a layer at 3168 x 5120, of which 49 MB are e4m3; qk_norm_rope_store moves 195.
    The values of one token would be 5120 bytes in 5120 places: separate programs in the same launch transpose tiles of 64 tokens by 64
    channels instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everface.kernels.fused.norm_rope import norm_rope, norm_rope_reference
from everface.kernels.fused.qk_norm_rope_store import Start, split_start
from everface.kernels.fused.row_primitives import E4M3, TILES, load_row, row_sizes, to_e4m3, variant, wait_for_inputs
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

BT = BC = 64  # tokens and channels of a tile of values

# --- reference


def qk_norm_rope_quantize_reference(
    q_TD: Tensor, k_TD: Tensor, v_TD: Tensor, weight_q_D: Tensor, weight_k_D: Tensor, eps: float, table_TP2: Tensor, ring_k_SHd: Tensor,
    ring_vT_HdS: Tensor, v_factor_H: Tensor, start: Start,
) -> Tensor:  # fmt: skip
    """Plain torch; also the CPU path."""
    _, *heads = ring_k_SHd.shape
    q, k = (norm_rope_reference(x, w, eps, table_TP2, (heads[0], heads[1])) for x, w in ((q_TD, weight_q_D), (k_TD, weight_k_D)))
    v = v_TD.unflatten(-1, heads).float() * v_factor_H[:, None]
    slots = start + torch.arange(len(k), device=k_TD.device)
    ring_k_SHd.view(torch.uint8)[slots] = to_e4m3(k).view(torch.uint8)  # as bytes: not every device indexes e4m3
    ring_vT_HdS.view(torch.uint8)[..., slots] = to_e4m3(v).view(torch.uint8).permute(1, 2, 0)
    return to_e4m3(q)


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name: q, k, v read and written in e4m3, the table read once."""
    q = args["q_ptr"]
    return Cost(0, 3 * q.numel() * (q.element_size() + 1) + args["table_ptr"].numel() * 4)


@jit(launch_metadata=metadata("qk_norm_rope_quantize", cost))
def qk_norm_rope_quantize_kernel(
    q_ptr, k_ptr, v_ptr, weight_q_ptr, weight_k_ptr, table_ptr, out_ptr, ring_k_ptr, ring_v_ptr, v_factor_ptr,
    q_stride, k_stride, v_stride, pitch, start, start_ptr, tokens, eps,
    D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, HEAD: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The first programs take a token each, its query and its key; the others a tile of values, channels first."""
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    if start_ptr is not None:
        start = tl.load(start_ptr)
    if token < tokens:
        table_ptr += token * HEAD
        norm_rope(q_ptr + token * q_stride, weight_q_ptr, table_ptr, out_ptr + token * D, eps, D, A, B, HEAD)
        norm_rope(k_ptr + token * k_stride, weight_k_ptr, table_ptr, ring_k_ptr + (start + token) * D, eps, D, A, B, HEAD)
    else:
        tile = token - tokens
        rows = tile // tl.cdiv(D, BC) * BT + tl.arange(0, BT)
        cols = tile % tl.cdiv(D, BC) * BC + tl.arange(0, BC)
        mask = (rows < tokens)[:, None] & (cols < D)[None, :]
        factor = load_row(v_factor_ptr, cols // HEAD, cols < D)
        v = load_row(v_ptr, rows[:, None] * v_stride + cols[None, :], mask) * factor[None, :]
        at = cols[:, None].to(tl.int64) * pitch + start + rows[None, :]
        tl.store(ring_v_ptr + at, tl.trans(v.to(tl.float8e4nv)), mask=tl.trans(mask))


# --- tiles: those of row_primitives.py

COMPILE = [
    CompileSpec(
        name=f"qk_norm_rope_quantize{' pdl' if pdl else ''}",
        kernel=qk_norm_rope_quantize_kernel,
        signature=dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "weight_q_ptr", "weight_k_ptr"), "*bf16")
        | dict.fromkeys(("out_ptr", "ring_k_ptr", "ring_v_ptr"), "*fp8e4nv")
        | {"table_ptr": "*fp32", "v_factor_ptr": "*fp32", "start_ptr": "*i64", "eps": "fp32"}
        | dict.fromkeys(("q_stride", "k_stride", "v_stride", "pitch", "start", "tokens"), "i32"),
        constexprs={**row_sizes(5120), "HEAD": 128, "BT": BT, "BC": BC, "PDL": pdl},
        num_warps=TILES[80]["wide"].num_warps,
        num_stages=1,
        archs=(90, 100),
        unaligned=("start_ptr", "start", "tokens"),
    )
    for pdl in (False, True)
]


# --- op


@torch.library.custom_op("everface::qk_norm_rope_quantize", mutates_args=("out", "ring_k", "ring_v"))
def launch(
    q: Tensor, k: Tensor, v: Tensor, weight_q: Tensor, weight_k: Tensor, eps: float, table: Tensor, out: Tensor, ring_k: Tensor,
    ring_v: Tensor, v_factor: Tensor, start: int, start_at: Tensor | None = None,
) -> None:  # fmt: skip
    """The kernel, into outputs that the caller owns. `start_at` [] int64, if given, replaces `start`."""
    (tokens, width), (heads, head, _) = q.shape, ring_v.shape
    assert start_at is None or (start_at.dtype == torch.int64 and start_at.numel() == 1)
    assert start + tokens <= ring_k.shape[0] and ring_k.is_contiguous() and v_factor.shape == (heads,)
    assert ring_v.stride(2) == 1 and ring_v.stride(0) == head * ring_v.stride(1)
    assert q.stride(1) == k.stride(1) == v.stride(1) == 1 and weight_q.dtype == weight_k.dtype == q.dtype
    options = select_tile("qk_norm_rope_quantize", TILES, q.device, variant(width)).options()
    programs = tokens + -(-tokens // BT) * -(-width // BC)
    qk_norm_rope_quantize_kernel[(programs,)](
        q, k, v, weight_q, weight_k, table, out, ring_k, ring_v, v_factor, q.stride(0), k.stride(0), v.stride(0), ring_v.stride(1),
        start, start_at, tokens, eps, **row_sizes(width), HEAD=head, BT=BT, BC=BC, **programmatic_launch(q.device), **options,
    )  # fmt: skip


@launch.register_fake
def _(*args: Any) -> None:
    return None


def qk_norm_rope_quantize(
    q_TD: Tensor, k_TD: Tensor, v_TD: Tensor, weight_q_D: Tensor, weight_k_D: Tensor, eps: float, table_TP2: Tensor, ring_k_SHd: Tensor,
    ring_vT_HdS: Tensor, v_factor_H: Tensor, start: Start,
) -> Tensor:  # fmt: skip
    """The op. Writes the ring slot, returns q_THd."""
    given = (q_TD, k_TD, v_TD, weight_q_D, weight_k_D, eps)
    if not runs_triton(q_TD, k_TD, v_TD, weight_q_D, weight_k_D):
        return qk_norm_rope_quantize_reference(*given, table_TP2, ring_k_SHd, ring_vT_HdS, v_factor_H, start)
    q_THd = q_TD.new_empty((len(q_TD), *ring_k_SHd.shape[1:]), dtype=E4M3)
    launch(*given, table_TP2.contiguous(), q_THd, ring_k_SHd, ring_vT_HdS, v_factor_H, *split_start(start))
    return q_THd
