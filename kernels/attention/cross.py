"""Attention of every query over a short list of keys, the same for all of them: text (512 keys) and audio (5 keys a frame).

Contract
    o[b,t,h] = sum_s softmax_s(q[b,t,h] . k[b,s,h] / sqrt(d)) v[b,s,h]          no mask, no bias
    q_BTHd, k_BSHd, v_BSHd -> o_BTHd, all of one floating dtype; softmax statistics in float32
    k and v may have batch 1 and then serve every batch row of q
    On a GPU heads and their width lie side by side (strides d and 1), d is at most 128; batch and token strides are free.
Cost
    4 B T S H d flops. Text at 704x384: 3168 x 512 x 5120 -> 33 GFLOP a layer, bound by tensor cores;
    audio: 5 keys, bound by reading q and writing o (65 MB a layer in bf16).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from everface.kernels.attention.online_softmax import fold, start, sweep
from everface.kernels.launch import Build, Tiles, Work, jit, metadata, pick, runs_triton, tile, tl

ONCE = 16  # up to this many keys are one tile, held in registers: no loop, no running maximum

# --- reference


def cross_reference(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    """Plain torch; differentiable; also the CPU path."""
    batch = q_BTHd.shape[0]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BSHd, v_BSHd))
    return F.scaled_dot_product_attention(q, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)).transpose(1, 2)


# --- kernel


def work(batch: int, tokens: int, keys: int, heads: int, d: int, kv_batch: int, itemsize: int) -> Work:
    """Of one call: two products of every query with every key; q, o, k, v moved once."""
    return Work(4 * batch * tokens * keys * heads * d, itemsize * heads * d * 2 * (batch * tokens + kv_batch * keys))


def _work(a: dict[str, Any]) -> Work:
    return work(a["batch"], a["tokens"], a["keys"], a["heads"], a["d"], a["batch"] if a["kv_B"] else 1, a["q"].element_size())


@jit(launch_metadata=metadata("cross", _work))
def cross_kernel(q, k, v, o, batch, tokens, keys, heads, q_B, q_T, kv_B, kv_S, o_B, o_T, scale,
                 d: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
                 ONE: tl.constexpr):  # fmt: skip
    """One program: BM queries of one head and batch row over all keys. ONE: they are a single tile of BN columns."""
    t, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    mine = (t[:, None] < tokens) & (c[None, :] < d)
    rows = t[:, None].to(tl.int64)
    q_MD = tl.load(q + b * q_B + rows * q_T + h * d + c[None, :], mask=mine, other=0.0)
    acc, l, m = start(BM, D)
    k_ptr, v_ptr = k + b * kv_B + h * d, v + b * kv_B + h * d
    if ONE:
        s = tl.arange(0, BN)
        seen = s < keys
        k_DS = tl.load(k_ptr + s[None, :] * kv_S + c[:, None], mask=seen[None, :] & (c[:, None] < d), other=0.0)
        v_SD = tl.load(v_ptr + s[:, None] * kv_S + c[None, :], mask=seen[:, None] & (c[None, :] < d), other=0.0)
        acc, l, m = fold(acc, l, m, q_MD, k_DS, v_SD, seen, scale, True, PRECISION)
    else:
        acc, l, m = sweep(acc, l, m, q_MD, k_ptr, v_ptr, keys, kv_S, scale, d, D, BN, PRECISION)
    tl.store(o + b * o_B + rows * o_T + h * d + c[None, :], (acc / l[:, None]).to(o.dtype.element_ty), mask=mine)


# --- tiles: (keys, bytes an element, padded width). Argued on paper, not yet measured: see docs/tuning.md.
# Short: 5 keys, bound by memory; 64 queries are 16 KiB in and out of a program, 4 warps, many programs an SM. Text: intensity
# BM flops a byte of K and V, which 25 query tiles of a head share in L2; 128 x 64 keeps acc (64 registers a thread) and s (32) unspilt.

TILES: Tiles = {
    80: {
        **{("short", size, D): tile(4, 1, BM=64, BN=16) for size in (2, 4) for D in (64, 128)},
        ("long", 2, 64): tile(4, 3, BM=128, BN=64),
        ("long", 2, 128): tile(8, 2, BM=128, BN=64),
        **{("long", 4, D): tile(4, 2, BM=32, BN=32) for D in (64, 128)},
    },
    90: {
        ("long", 2, 64): tile(8, 3, BM=128, BN=64),
        ("long", 2, 128): tile(8, 3, BM=128, BN=64),
    },
}

# --- op


def padded(d: int) -> int:
    """The width a kernel works at."""
    if d > 128:
        raise ValueError(f"heads of {d} are wider than the 128 these kernels hold")
    return 64 if d <= 64 else 128


def side_by_side(*tensors: torch.Tensor) -> None:
    """What the kernels assume of [..., heads, width]."""
    for x in tensors:
        if x.stride(-1) != 1 or (x.shape[-2] > 1 and x.stride(-2) != x.shape[-1]):
            raise ValueError(f"heads and their width must lie side by side, strides are {x.stride()}")


def precision(dtype: torch.dtype) -> str:
    """Of tl.dot: float32 operands are not to be rounded to tf32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def softmax_scale(d: int) -> float:
    return 1.4426950408889634 / d**0.5


def launch_cross(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    """The kernel, on a GPU or under the interpreter."""
    (batch, tokens, heads, d), keys = q_BTHd.shape, k_BSHd.shape[1]
    v_BSHd = v_BSHd if v_BSHd.stride() == k_BSHd.stride() else v_BSHd.contiguous()
    k_BSHd = k_BSHd if v_BSHd.stride() == k_BSHd.stride() else k_BSHd.contiguous()
    side_by_side(q_BTHd, k_BSHd, v_BSHd)
    o_BTHd = torch.empty((batch, tokens, heads, d), dtype=q_BTHd.dtype, device=q_BTHd.device)
    one = keys <= ONCE
    options = pick("cross", TILES, q_BTHd.device, ("short" if one else "long", q_BTHd.element_size(), padded(d))).options()
    cross_kernel[(-(-tokens // options["BM"]), heads, batch)](
        q_BTHd, k_BSHd, v_BSHd, o_BTHd, batch, tokens, keys, heads,
        *q_BTHd.stride()[:2], k_BSHd.stride(0) if k_BSHd.shape[0] > 1 else 0, k_BSHd.stride(1), *o_BTHd.stride()[:2],
        softmax_scale(d), d=d, D=padded(d), PRECISION=precision(q_BTHd.dtype), ONE=one, **options,
    )  # fmt: skip
    return o_BTHd


@torch.library.custom_op("everface::cross", mutates_args=(), device_types="cuda")
def cross_op(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    return launch_cross(q_BTHd, k_BSHd, v_BSHd)


@cross_op.register_fake
def _(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    return q_BTHd.new_empty(q_BTHd.shape)


def cross(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    """The op. Returns o_BTHd."""
    if runs_triton(q_BTHd, k_BSHd, v_BSHd):
        return cross_op(q_BTHd, k_BSHd, v_BSHd)
    return cross_reference(q_BTHd, k_BSHd, v_BSHd)


# --- what CI compiles


def _build(arch: int, name: str, dtype: str, variant: tuple[str, int, int], d: int) -> Build:
    chosen = pick("cross", TILES, arch, variant)
    signature = dict.fromkeys(("q", "k", "v", "o"), f"*{dtype}") | dict.fromkeys(
        ("batch", "tokens", "keys", "heads", "q_B", "q_T", "kv_B", "kv_S", "o_B", "o_T"), "i32"
    )
    exact = "ieee" if dtype == "fp32" else "tf32"
    sizes = dict(chosen.sizes) | {"d": d, "D": variant[2], "PRECISION": exact, "ONE": variant[0] == "short"}
    loose = ("batch", "tokens", "keys", "heads")
    return Build(name, cross_kernel, signature | {"scale": "fp32"}, sizes, chosen.num_warps, chosen.num_stages, (arch,), loose,
                 matrix=variant[0] == "long" and dtype != "fp32")  # fmt: skip


COMPILE = [
    _build(arch, f"cross {variant} {dtype} d{d}", dtype, (variant, size, 64 if d <= 64 else 128), d)
    for arch in (80, 90, 100)
    for variant in ("short", "long")
    for dtype, size, d in (("bf16", 2, 128), ("fp16", 2, 64), ("bf16", 2, 48), ("fp32", 4, 128), ("fp32", 4, 48))
]
