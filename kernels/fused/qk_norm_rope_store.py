"""From the raw projections of a block to rotated queries and a filled ring slot, in one pass.

Contract
    q = rotate(rms_norm(q, weight_q)), k = rotate(rms_norm(k, weight_k)); ring_k[start:start+T] = k, ring_v[start:start+T] = v
    rms_norm, rotate and their roundings as in norm_rope.py
    q_TD, k_TD, v_TD, rows may be strided (parts of one fused projection); weight_D in q's dtype; table_TP2 float32 (cos, sin)
    with P = d/2; ring_*_SHd written in place, contiguous; start + T <= S: a block never crosses the end of the ring;
    start is an integer, or an int64 tensor of no dimension that the device reads during the launch (it is not checked then)
    -> q_THd
Cost
    memory: reads q, k, v and writes q and one ring slot of k and v: 195 MB a layer in bf16 at 3168 x 5120.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from everface.kernels.cpu import native_cpu, operand, runs_native
from everface.kernels.fused.norm_rope import norm_rope, norm_rope_reference
from everface.kernels.fused.row_primitives import TILES, load_row, row_sizes, variant, wait_for_inputs
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

Start = int | Tensor

# --- reference


def qk_norm_rope_store_reference(
    q_TD: Tensor, k_TD: Tensor, v_TD: Tensor, weight_q_D: Tensor, weight_k_D: Tensor, eps: float, table_TP2: Tensor, ring_k_SHd: Tensor,
    ring_v_SHd: Tensor, start: Start,
) -> Tensor:  # fmt: skip
    """Plain torch; also the CPU path."""
    _, *heads = ring_k_SHd.shape
    q, k = (norm_rope_reference(x, w, eps, table_TP2, (heads[0], heads[1])) for x, w in ((q_TD, weight_q_D), (k_TD, weight_k_D)))
    v = v_TD.unflatten(-1, heads)
    if isinstance(start, Tensor):
        slots = start + torch.arange(len(k), device=start.device)
        ring_k_SHd.index_copy_(0, slots, k)
        ring_v_SHd.index_copy_(0, slots, v)
    else:
        ring_k_SHd[start : start + len(k)] = k
        ring_v_SHd[start : start + len(k)] = v
    return q


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name: q, k, v read and written once, the table read once."""
    q, ring = args["q_ptr"], args["ring_k_ptr"]
    tokens, width = q.shape
    return Cost(0, tokens * width * (4 * q.element_size() + 2 * ring.element_size()) + args["table_ptr"].numel() * 4)


@jit(launch_metadata=metadata("qk_norm_rope_store", cost))
def qk_norm_rope_store_kernel(
    q_ptr, k_ptr, v_ptr, weight_q_ptr, weight_k_ptr, table_ptr, out_ptr, ring_k_ptr, ring_v_ptr,
    q_stride, k_stride, v_stride, start, start_ptr, eps,
    D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, HEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program a token: its query, its key and its value."""
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    if start_ptr is not None:
        start = tl.load(start_ptr)
    slot = (start + token) * D
    table_ptr += token * HEAD
    norm_rope(q_ptr + token * q_stride, weight_q_ptr, table_ptr, out_ptr + token * D, eps, D, A, B, HEAD)
    norm_rope(k_ptr + token * k_stride, weight_k_ptr, table_ptr, ring_k_ptr + slot, eps, D, A, B, HEAD)
    cols_a = tl.arange(0, A)
    cols_b = A + tl.arange(0, B)
    tl.store(ring_v_ptr + slot + cols_a, load_row(v_ptr + token * v_stride, cols_a, cols_a < D), mask=cols_a < D)
    tl.store(ring_v_ptr + slot + cols_b, load_row(v_ptr + token * v_stride, cols_b, cols_b < D), mask=cols_b < D)


# --- tiles: those of row_primitives.py

COMPILE = [
    CompileSpec(
        name=f"qk_norm_rope_store{where}",
        kernel=qk_norm_rope_store_kernel,
        signature=dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "weight_q_ptr", "weight_k_ptr"), "*bf16")
        | {"table_ptr": "*fp32", "out_ptr": "*bf16", "ring_k_ptr": "*bf16", "ring_v_ptr": "*bf16"}
        | {"q_stride": "i32", "k_stride": "i32", "v_stride": "i32", "start": "i32", "eps": "fp32"}
        | ({"start_ptr": "*i64"} if where else {}),
        constexprs={**row_sizes(5120), "HEAD": 128, "PDL": where.endswith("pdl")} | ({} if where else {"start_ptr": None}),
        num_warps=TILES[80]["wide"].num_warps,
        num_stages=1,
        archs=(90, 100) if where.endswith("pdl") else (80, 90, 100),
    )
    for where in ("", " from memory", " from memory pdl")
]


# --- op


@torch.library.custom_op("everface::qk_norm_rope_store", mutates_args=("out", "ring_k", "ring_v"))
def launch(
    q: Tensor, k: Tensor, v: Tensor, weight_q: Tensor, weight_k: Tensor, eps: float, table: Tensor, out: Tensor, ring_k: Tensor,
    ring_v: Tensor, start: int, start_at: Tensor | None = None,
) -> None:  # fmt: skip
    """The kernel, into outputs that the caller owns. Elements of a row of q, k, v are adjacent; the rest is contiguous.
    `start_at` [] int64, if given, replaces `start`."""
    tokens, width = q.shape
    assert start_at is None or (start_at.dtype == torch.int64 and start_at.numel() == 1)
    assert start + tokens <= ring_k.shape[0] and ring_k.is_contiguous() and ring_v.is_contiguous()
    assert q.stride(1) == k.stride(1) == v.stride(1) == 1 and weight_q.dtype == weight_k.dtype == q.dtype
    options = select_tile("qk_norm_rope_store", TILES, q.device, variant(width)).options()
    qk_norm_rope_store_kernel[(tokens,)](
        q, k, v, weight_q, weight_k, table, out, ring_k, ring_v, q.stride(0), k.stride(0), v.stride(0), start, start_at, eps,
        **row_sizes(width), HEAD=ring_k.shape[2], **programmatic_launch(q.device), **options,
    )  # fmt: skip


@launch.register_fake
def _(*args: Any) -> None:
    return None


def run_native(
    q: Tensor, k: Tensor, v: Tensor, weight_q: Tensor, weight_k: Tensor, eps: float, table: Tensor, out: Tensor, ring_k: Tensor,
    ring_v: Tensor, start: int, start_at: Tensor | None = None,
) -> None:  # fmt: skip
    """csrc/cpu, with the arguments of `launch`."""
    (tokens, width), first = q.shape, start if start_at is None else int(start_at)
    if first + tokens > len(ring_k):
        raise IndexError(f"a block of {tokens} tokens at slot {first} crosses the end of a ring of {len(ring_k)}")
    slots = (operand(ring[first:], width) for ring in (ring_k, ring_v))
    native_cpu().qk_norm_rope_store(
        *(operand(x, x.stride(0)) for x in (q, k, v)), operand(out, width), *slots, weight_q.data_ptr(), weight_k.data_ptr(),
        table.data_ptr(), eps, tokens, width, ring_k.shape[1], torch.get_num_threads(),
    )  # fmt: skip


def select_runner(*given: Tensor) -> Callable[..., None] | None:
    """What runs on q, k, v, their weights and the ring: the kernel, csrc/cpu, or None, the reference."""
    if runs_triton(*given[:5]):
        return launch
    q, k, v, *_, ring_k, ring_v = given
    fits = all(t.dtype == q.dtype for t in given) and q.stride(1) == k.stride(1) == v.stride(1) == 1 and q.shape[1] % 2 == 0
    return run_native if fits and ring_k.is_contiguous() and ring_v.is_contiguous() and runs_native(*given) else None


def qk_norm_rope_store(
    q_TD: Tensor, k_TD: Tensor, v_TD: Tensor, weight_q_D: Tensor, weight_k_D: Tensor, eps: float, table_TP2: Tensor, ring_k_SHd: Tensor,
    ring_v_SHd: Tensor, start: Start,
) -> Tensor:  # fmt: skip
    """The op. Writes the ring slot, returns q_THd."""
    given = (q_TD, k_TD, v_TD, weight_q_D, weight_k_D, eps)
    run = select_runner(*given[:5], ring_k_SHd, ring_v_SHd)
    if run is None:
        return qk_norm_rope_store_reference(*given, table_TP2, ring_k_SHd, ring_v_SHd, start)
    q_THd = q_TD.new_empty((len(q_TD), *ring_k_SHd.shape[1:]))
    run(*given, table_TP2.contiguous(), q_THd, ring_k_SHd, ring_v_SHd, *split_start(start))
    return q_THd


def split_start(start: Start) -> tuple[int, Tensor | None]:
    """(start, start_at) for `launch`: a number, or a tensor that the device reads."""
    return (0, start) if isinstance(start, Tensor) else (start, None)
