"""Self-attention of one block of latent frames over the KV ring of its denoising step and the sink.

Contract
    o = softmax(q . [ring_k[:used], sink_k]^T / sqrt(d)) [ring_v[:used], sink_v]          no mask: the block sees itself whole
    q_THd       this block's queries, rotated at absolute positions
    ring_*_SHd  keys (rotated) and values of the last window_blocks blocks, this one included. The order of the
                slots carries no meaning; only the first `used` of them have been written
    sink_*_CHd  reference and motion tokens; keys rotated for this block (the reference rolls ahead of it)
    -> o_THd    dtype of q; softmax statistics in float32
    On a GPU heads and their width lie side by side (strides d and 1), d is a multiple of 8, at most 128; token strides are free.
Cost
    4 T (used + C) H d flops: 3168 x 15,312 x 5120 -> 0.99 TFLOP a layer at 704x384 in steady state, 39.7 TFLOP a step.
    The ring and the sink are two address ranges of one loop over keys; only the reference concatenates them.
"""

from __future__ import annotations

from typing import Any

import torch

from everface.kernels.attention.cross import (
    by_descriptor,
    cross_reference,
    descriptor,
    padded,
    precision,
    runs_attention,
    softmax_scale,
)
from everface.kernels.attention.online_softmax import finish, queries, start, sweep, sweep_at, tile_at
from everface.kernels.launch import Build, Tiles, Work, jit, metadata, pick, processors, tile, tl

# --- reference


def block_causal_reference(
    q_THd: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    used: int,
    sink_k_CHd: torch.Tensor,
    sink_v_CHd: torch.Tensor,
) -> torch.Tensor:
    """Plain torch; differentiable; also the CPU path."""
    k = torch.cat((ring_k_SHd[:used], sink_k_CHd))
    v = torch.cat((ring_v_SHd[:used], sink_v_CHd))
    return cross_reference(q_THd[None], k[None], v[None])[0]


# --- kernel


def work(tokens: int, keys: int, heads: int, d: int, itemsize: int) -> Work:
    """Of one call: two products of every query with every key; q, o, k, v moved once."""
    return Work(4 * tokens * keys * heads * d, itemsize * heads * d * 2 * (tokens + keys))


def _work(a: dict[str, Any]) -> Work:
    return work(a["tokens"], a["used"] + a["sink"], a["heads"], a["d"], a["o"].element_size())


@jit(launch_metadata=metadata("block_causal", _work))
def block_causal_kernel(q, ring_k, ring_v, sink_k, sink_v, o, tokens, used, sink, heads, scale, d: tl.constexpr,
                        D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Persistent: a program takes every n-th tile of BM queries of one head, head by head, so that the programs which run at the
    same time read the same few heads' keys and values from L2. All but o are descriptors [tokens or slots, heads * d]."""
    tiles = tl.cdiv(tokens, BM)
    for tile_id in tl.range(tl.program_id(0), tiles * heads, tl.num_programs(0)):
        first, column = tile_id % tiles * BM, tile_id // tiles * d
        q_MD = queries(q, first, column, d, D)
        acc, l, m = start(BM, D)
        acc, l, m = sweep(acc, l, m, q_MD, ring_k, ring_v, 0, column, used, scale, BN, PRECISION)
        acc, l, m = sweep(acc, l, m, q_MD, sink_k, sink_v, 0, column, sink, scale, BN, PRECISION)
        finish(acc, l, o, first, tokens, 0, column, heads * d, d, D, BM)


@jit(launch_metadata=metadata("block_causal", _work))
def block_causal_pointer_kernel(q, ring_k, ring_v, sink_k, sink_v, o, tokens, used, sink, heads, scale, d: tl.constexpr,
                                D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The same where all are pointers to contiguous rows of heads * d."""
    tiles, stride = tl.cdiv(tokens, BM), heads * d
    for tile_id in tl.range(tl.program_id(0), tiles * heads, tl.num_programs(0)):
        first, column = tile_id % tiles * BM, tile_id // tiles * d
        q_MD = tile_at(q, first, column, stride, tokens - first, d, D, BM)
        acc, l, m = start(BM, D)
        acc, l, m = sweep_at(
            acc, l, m, q_MD, ring_k, ring_v, sink_k, sink_v, 0, column, stride, used, sink, scale, d, D, BN, PRECISION
        )
        finish(acc, l, o, first, tokens, 0, column, stride, d, D, BM)


# --- tiles: (bytes an element, padded width). Argued on paper and from the compile report, not measured: no GPU was at hand.
# sm_90: 128 queries do 128 flops a byte of K and V, which at 500 TFLOP/s is 3.9 TB/s from L2, below its ~5.5; 64 queries would be
# bound by it. With two ranges and their tails 128 x 128 takes 255 registers and spills, 128 x 64 takes 212: one program an SM, 8 warps,
# 1000 tiles in 7.6 rounds of 132. Three stages (129 KiB) hide the loads; tl.dot waits for each product, so the softmax lies bare
# between them, and 460-490 TFLOP/s is what others see of this form.
# 80 serves every chip with 99 KiB, and the interpreter; its kernel takes pointers: 251 registers, 64 KiB, one program an SM.

TILES: Tiles = {
    80: {
        **{(2, D): tile(8, 2, BM=128, BN=64) for D in (64, 128)},
        **{(4, D): tile(4, 1, BM=64, BN=32) for D in (64, 128)},
    },
    90: {(2, D): tile(8, 3, BM=128, BN=64) for D in (64, 128)},
}

# --- op


def launch_block_causal(
    q_THd: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    used: int,
    sink_k_CHd: torch.Tensor,
    sink_v_CHd: torch.Tensor,
    described: bool | None = None,
) -> torch.Tensor:
    """The kernel, on a GPU or under the interpreter; `described` None is by_descriptor's choice."""
    (tokens, heads, d), device, D = q_THd.shape, q_THd.device, padded(q_THd.shape[-1])
    if not 0 < used <= len(ring_k_SHd):
        raise ValueError(f"{used} slots used of a ring of {len(ring_k_SHd)}")
    o_THd = torch.empty((tokens, heads, d), dtype=q_THd.dtype, device=device)
    options = pick("block_causal", TILES, device, (q_THd.element_size(), D)).options()
    if by_descriptor(device) if described is None else described:
        ring = [descriptor(x, used, options["BN"], D) for x in (ring_k_SHd, ring_v_SHd)]
        sink = [descriptor(x, len(x), options["BN"], D) for x in (sink_k_CHd, sink_v_CHd)] if len(sink_k_CHd) else ring  # never read
        inputs, kernel = (descriptor(q_THd, tokens, options["BM"], D), *ring, *sink), block_causal_kernel
    else:
        inputs = tuple(x.contiguous() for x in (q_THd, ring_k_SHd, ring_v_SHd, sink_k_CHd, sink_v_CHd))
        kernel = block_causal_pointer_kernel
    tiles = -(-tokens // options["BM"]) * heads
    kernel[(min(tiles, processors(device)),)](
        *inputs, o_THd, tokens, used, len(sink_k_CHd), heads, softmax_scale(d),
        d=d, D=D, PRECISION=precision(q_THd.dtype), **options,
    )  # fmt: skip
    return o_THd


@torch.library.custom_op("everface::block_causal", mutates_args=(), device_types="cuda")
def block_causal_op(
    q_THd: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    used: int,
    sink_k_CHd: torch.Tensor,
    sink_v_CHd: torch.Tensor,
) -> torch.Tensor:
    from everface.kernels.attention.backend import attend  # which knows this file's kernel among others

    return attend(q_THd, ring_k_SHd, ring_v_SHd, used, sink_k_CHd, sink_v_CHd)


@block_causal_op.register_fake
def _(
    q_THd: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    used: int,
    sink_k_CHd: torch.Tensor,
    sink_v_CHd: torch.Tensor,
) -> torch.Tensor:
    return q_THd.new_empty(q_THd.shape)


def block_causal(
    q_THd: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    used: int,
    sink_k_CHd: torch.Tensor,
    sink_v_CHd: torch.Tensor,
) -> torch.Tensor:
    """The op. Returns o_THd."""
    if runs_attention(q_THd, ring_k_SHd, ring_v_SHd, sink_k_CHd, sink_v_CHd):
        return block_causal_op(q_THd, ring_k_SHd, ring_v_SHd, used, sink_k_CHd, sink_v_CHd)
    return block_causal_reference(q_THd, ring_k_SHd, ring_v_SHd, used, sink_k_CHd, sink_v_CHd)


# --- what CI compiles


def _build(chip: int, dtype: str, d: int) -> Build:
    chosen = pick("block_causal", TILES, chip, (2, padded(d)))
    size = dict(chosen.sizes)
    inputs = dict.fromkeys(("ring_k", "ring_v", "sink_k", "sink_v"), f"tensordesc<{dtype}[{size['BN']}, {padded(d)}]>")
    inputs |= {"q": f"tensordesc<{dtype}[{size['BM']}, {padded(d)}]>"}
    signature = (inputs if chip >= 90 else dict.fromkeys(inputs, f"*{dtype}")) | {"o": f"*{dtype}", "scale": "fp32"}
    signature |= dict.fromkeys(("tokens", "used", "sink", "heads"), "i32")
    sizes = size | {"d": d, "D": padded(d), "PRECISION": "tf32"}
    kernel = block_causal_kernel if chip >= 90 else block_causal_pointer_kernel
    return Build(f"block_causal {dtype} d{d}", kernel, signature, sizes, chosen.num_warps, chosen.num_stages, (chip,),
                 loose=("tokens", "used", "sink", "heads"), matrix=True)  # fmt: skip


COMPILE = [
    _build(chip, dtype, d)
    for dtype, d in (("bf16", 128), ("bf16", 48))
    for chip in (80, 90, 100)
]
