"""From the raw projections of a block to rotated queries and a filled ring slot, in one pass.

Contract
    q = rotate(rms(q, weight_q)), k = rotate(rms(k, weight_k)); ring_k[start:start+T] = k, ring_v[start:start+T] = v
    rms     x / sqrt(mean(x^2 over D) + eps) * weight, over the whole width before the split into heads;
            statistics in float32, one rounding to x's dtype, then times the weight
    rotate  pair (x[2j], x[2j+1]) of every head as a complex number times (cos + i sin)[token, j];
            product in float32, one rounding to x's dtype
    q_TD, k_TD, v_TD, rows may be strided (parts of one fused projection); weight_D in q's dtype; table_TP2 float32 (cos, sin)
    with P = d/2; ring_*_SHd written in place, contiguous; start + T <= S: a block never crosses the end of the ring;
    start is an integer, or an int64 tensor of no dimension that the device reads when it gets there (nobody checks it then)
    -> q_THd
    rms_norm and rotate are ops of their own too: the queries of text and sound are not rotated, the keys of the sink only that, and
    those end in e4m3 codes (nearest to what would be stored, saturated) where the attention reads such.
Cost
    memory: reads q, k, v and writes q and one ring slot of k and v: 195 MB a layer in bf16 at 3168 x 5120; rms_norm alone 65 MB.
"""

from __future__ import annotations

from typing import Any

import torch

from everface.kernels.fused.row_primitives import E4M3, TILES, load_row, round_to, row_sizes, to_e4m3, variant
from everface.kernels.launch import CompileSpec, Cost, jit, metadata, runs_triton, select_tile, tl

Start = int | torch.Tensor

# --- reference


def rms_norm_reference(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension, rounded before the weight as the official model does. Plain torch; differentiable."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight_D


def rotate_reference(x_THd: torch.Tensor, table_TP2: torch.Tensor) -> torch.Tensor:
    """Rotate interleaved pairs. Leading batch dimensions of x share the table. Plain torch; differentiable."""
    x_THP = torch.view_as_complex(x_THd.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(x_THP * torch.view_as_complex(table_TP2)[:, None]).flatten(-2).to(x_THd.dtype)


def qk_norm_rope_store_reference(
    q_TD: torch.Tensor,
    k_TD: torch.Tensor,
    v_TD: torch.Tensor,
    weight_q_D: torch.Tensor,
    weight_k_D: torch.Tensor,
    eps: float,
    table_TP2: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    start: Start,
) -> torch.Tensor:
    """Plain torch; also the CPU path."""
    heads = ring_k_SHd.shape[1:]
    q = rotate_reference(rms_norm_reference(q_TD, weight_q_D, eps).unflatten(-1, heads), table_TP2)
    k = rotate_reference(rms_norm_reference(k_TD, weight_k_D, eps).unflatten(-1, heads), table_TP2)
    v = v_TD.unflatten(-1, heads)
    if isinstance(start, torch.Tensor):
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


@jit
def rotated(x, table_ptr, cols, mask, HEAD: tl.constexpr, N: tl.constexpr, DTYPE: tl.constexpr):
    """Part of a row, N columns, with its pairs turned. A token's table serves every head: it is read again from the cache."""
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
        a = rotated(a, table_ptr, cols_a, mask_a, HEAD, A, DTYPE)
        b = rotated(b, table_ptr, cols_b, mask_b, HEAD, B, DTYPE)
    tl.store(out_ptr + cols_a, a, mask=mask_a)
    tl.store(out_ptr + cols_b, b, mask=mask_b)


@jit(launch_metadata=metadata("qk_norm_rope_store", cost))
def qk_norm_rope_store_kernel(
    q_ptr, k_ptr, v_ptr, weight_q_ptr, weight_k_ptr, table_ptr, out_ptr, ring_k_ptr, ring_v_ptr,
    q_stride, k_stride, v_stride, start, start_ptr, eps,
    D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """One program a token: its query, its key and its value."""
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


def norm_rope_cost(args: dict[str, Any]) -> Cost:
    """Of one launch of norm_rope_kernel, from its arguments by name."""
    x, table = args["x_ptr"], args["table_ptr"]
    return Cost(0, x.numel() * (x.element_size() + args["out_ptr"].element_size()) + (0 if table is None else table.numel() * 4))


@jit(launch_metadata=metadata("norm_rope", norm_rope_cost))
def norm_rope_kernel(
    x_ptr, weight_ptr, table_ptr, out_ptr, tokens, pitch, eps,
    D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """One of the two alone, one program a row: the norm of a query of text or sound, the rotation of a key of the sink. Every `tokens`
    rows begin anew in the table, and `pitch` elements further in out."""
    row = tl.program_id(0).to(tl.int64)
    if table_ptr is not None:
        table_ptr += row % tokens * HEAD
    out_ptr += row // tokens * pitch + row % tokens * D
    norm_rope(x_ptr + row * D, weight_ptr, table_ptr, out_ptr, eps, D, A, B, HEAD)


# --- tiles: those of row.py

COMPILE = [
    *(
        CompileSpec(
            name=f"qk_norm_rope_store{where}",
            kernel=qk_norm_rope_store_kernel,
            signature=dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "weight_q_ptr", "weight_k_ptr"), "*bf16")
            | {"table_ptr": "*fp32", "out_ptr": "*bf16", "ring_k_ptr": "*bf16", "ring_v_ptr": "*bf16"}
            | {"q_stride": "i32", "k_stride": "i32", "v_stride": "i32", "start": "i32", "eps": "fp32"}
            | ({"start_ptr": "*i64"} if where else {}),
            constexprs={**row_sizes(5120), "HEAD": 128} | ({} if where else {"start_ptr": None}),
            num_warps=TILES[80]["wide"].num_warps,
            num_stages=1,
        )
        for where in ("", " from memory")
    ),
    *(
        CompileSpec(
            name=name,
            kernel=norm_rope_kernel,
            signature={"x_ptr": "*bf16", given: kind, "out_ptr": out, "tokens": "i32", "pitch": "i32", "eps": "fp32"},
            constexprs={absent: None, **row_sizes(5120), "HEAD": 128},
            num_warps=TILES[80]["wide"].num_warps,
            num_stages=1,
            archs=archs,
        )
        for name, given, kind, absent, out, archs in (
            ("rms_norm", "weight_ptr", "*bf16", "table_ptr", "*bf16", (80, 90, 100)),
            ("rotate", "table_ptr", "*fp32", "weight_ptr", "*bf16", (80, 90, 100)),
            ("rotate to e4m3", "table_ptr", "*fp32", "weight_ptr", "*fp8e4nv", (90, 100)),
        )
    ),
]


# --- op


@torch.library.custom_op("everface::qk_norm_rope_store", mutates_args=("out", "ring_k", "ring_v"))
def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weight_q: torch.Tensor,
    weight_k: torch.Tensor,
    eps: float,
    table: torch.Tensor,
    out: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    start: int,
    start_at: torch.Tensor | None = None,
) -> None:
    """The kernel, into outputs that the caller owns. Elements of a row of q, k, v lie side by side; the rest is contiguous.
    `start_at` [] int64, if given, stands for `start`."""
    tokens, width = q.shape
    assert start_at is None or (start_at.dtype == torch.int64 and start_at.numel() == 1)
    assert start + tokens <= ring_k.shape[0] and ring_k.is_contiguous() and ring_v.is_contiguous()
    assert q.stride(1) == k.stride(1) == v.stride(1) == 1 and weight_q.dtype == weight_k.dtype == q.dtype
    options = select_tile("qk_norm_rope_store", TILES, q.device, variant(width)).options()
    qk_norm_rope_store_kernel[(tokens,)](
        q, k, v, weight_q, weight_k, table, out, ring_k, ring_v, q.stride(0), k.stride(0), v.stride(0), start, start_at, eps,
        **row_sizes(width), HEAD=ring_k.shape[2], **options,
    )  # fmt: skip


@launch.register_fake
def _(*args: Any) -> None:
    return None


@torch.library.custom_op("everface::norm_rope", mutates_args=("out",))
def launch_rows(x: torch.Tensor, weight: torch.Tensor | None, table: torch.Tensor | None, eps: float, out: torch.Tensor) -> None:
    """norm_rope_kernel over x [rows, D], contiguous. Row r takes row r mod T of the table and ends in out[r // T, r mod T], of which
    every out[n] is contiguous; T = 1 without a table."""
    rows, width = x.shape
    assert (weight is None or weight.dtype == x.dtype) and out[0].is_contiguous()
    tokens, head = (1, 2) if table is None else (table.shape[0], 2 * table.shape[1])
    options = select_tile("norm_rope", TILES, x.device, variant(width)).options()
    norm_rope_kernel[(rows,)](x, weight, table, out, tokens, out.stride(0), eps, **row_sizes(width), HEAD=head, **options)


@launch_rows.register_fake
def _(*args: Any) -> None:
    return None


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """The norm alone, an op: x [..., D] -> the same."""
    if not (runs_triton(x, weight_D) and x.dtype == weight_D.dtype):
        return rms_norm_reference(x, weight_D, eps)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty_like(rows)
    launch_rows(rows, weight_D, None, eps, out)
    return out.view(x.shape)


def rotate(x_THd: torch.Tensor, table_TP2: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The rotation alone, an op: x [..., T, H, d], whose leading batch dimensions share the table. Returns `out`, if given: [N, T, H, d]
    like x, every out[n] contiguous; as codes where it is of e4m3, on chips that know it."""
    if not runs_triton(x_THd, table_TP2):
        turned = rotate_reference(x_THd, table_TP2)
        if out is None:
            return turned
        return out.copy_(to_e4m3(turned) if out.dtype == E4M3 else turned)
    rows = x_THd.reshape(-1, x_THd.shape[-2] * x_THd.shape[-1]).contiguous()
    if out is None:
        out = torch.empty_like(x_THd, memory_format=torch.contiguous_format)
    launch_rows(rows, None, table_TP2.contiguous(), 0.0, out.view(-1, *x_THd.shape[-3:]))
    return out


def qk_norm_rope_store(
    q_TD: torch.Tensor,
    k_TD: torch.Tensor,
    v_TD: torch.Tensor,
    weight_q_D: torch.Tensor,
    weight_k_D: torch.Tensor,
    eps: float,
    table_TP2: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    start: Start,
) -> torch.Tensor:
    """The op. Writes the ring slot, returns q_THd."""
    if not runs_triton(q_TD, k_TD, v_TD, weight_q_D, weight_k_D):
        return qk_norm_rope_store_reference(
            q_TD, k_TD, v_TD, weight_q_D, weight_k_D, eps, table_TP2, ring_k_SHd, ring_v_SHd, start
        )
    q_THd = q_TD.new_empty((len(q_TD), *ring_k_SHd.shape[1:]))
    where = (0, start) if isinstance(start, torch.Tensor) else (start, None)
    launch(q_TD, k_TD, v_TD, weight_q_D, weight_k_D, eps, table_TP2.contiguous(), q_THd, ring_k_SHd, ring_v_SHd, *where)
    return q_THd
