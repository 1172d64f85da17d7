"""Self-attention of one block of latent frames over the sink and the KV ring of its denoising step.

Contract
    o = softmax(q . k[:used]^T / sqrt(d)) v[:used]          no mask: the block sees itself whole
    q_THd           this block's queries, rotated at absolute positions
    k_NHd, v_NHd    rotated keys, and values: of the sink (the reference rolls ahead of the block, so its keys are rotated for this
                    block), then of the last window_blocks blocks, this one included. The order of the slots carries no meaning;
                    only the first `used` of them have been written
    -> o_THd        dtype of q; softmax statistics in float32
    On a GPU heads and their width lie side by side (strides d and 1), d is a multiple of 8, at most 128; token strides are free.
Cost
    4 T used H d flops: 3168 x 15,312 x 5120 -> 0.99 TFLOP a layer at 704x384 in steady state, 39.7 TFLOP a step.
"""

from __future__ import annotations

from typing import Any

import torch

from everface.kernels.attention.cross import (
    cross_reference,
    descriptor,
    padded_width,
    precision,
    runs_attention,
    softmax_scale,
    uses_descriptors,
)
from everface.kernels.attention.online_softmax import (
    attend_range,
    attend_range_pointers,
    init_state,
    load_queries,
    load_tile,
    store_output,
)
from everface.kernels.launch import CompileSpec, Cost, Tiles, jit, metadata, multiprocessors, select_tile, tile, tl

# --- reference


def block_causal_reference(q_THd: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor, used: int) -> torch.Tensor:
    """Plain torch; differentiable; also the CPU path."""
    return cross_reference(q_THd[None], k_NHd[None, :used], v_NHd[None, :used])[0]


# --- kernel


def cost(tokens: int, keys: int, heads: int, d: int, itemsize: int) -> Cost:
    """Of one call: two products of every query with every key; q, o, k, v moved once."""
    return Cost(4 * tokens * keys * heads * d, itemsize * heads * d * 2 * (tokens + keys))


def _cost(a: dict[str, Any]) -> Cost:
    return cost(a["tokens"], a["used"], a["heads"], a["d"], a["o"].element_size())


@jit(launch_metadata=metadata("block_causal", _cost))
def block_causal_kernel(q, k, v, o, tokens, used, heads, scale, d: tl.constexpr, D: tl.constexpr,
                        BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Persistent: a program takes every n-th tile of BM queries of one head, head by head, so that the programs which run at the
    same time read the same few heads' keys and values from L2. All but o are descriptors [tokens or slots, heads * d]."""
    tiles = tl.cdiv(tokens, BM)
    for tile_id in tl.range(tl.program_id(0), tiles * heads, tl.num_programs(0)):
        first, column = tile_id % tiles * BM, tile_id // tiles * d
        q_MD = load_queries(q, first, column, d, D)
        acc, l, m = init_state(BM, D)
        acc, l, m = attend_range(acc, l, m, q_MD, k, v, 0, column, used, scale, BN, PRECISION)
        store_output(acc, l, o, first, tokens, 0, column, heads * d, d, D, BM)


@jit(launch_metadata=metadata("block_causal", _cost))
def block_causal_pointer_kernel(q, k, v, o, tokens, used, heads, scale, d: tl.constexpr, D: tl.constexpr,
                                BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The same where all are pointers to contiguous rows of heads * d."""
    tiles, stride = tl.cdiv(tokens, BM), heads * d
    for tile_id in tl.range(tl.program_id(0), tiles * heads, tl.num_programs(0)):
        first, column = tile_id % tiles * BM, tile_id // tiles * d
        q_MD = load_tile(q, first, column, stride, tokens - first, d, D, BM)
        acc, l, m = init_state(BM, D)
        acc, l, m = attend_range_pointers(acc, l, m, q_MD, k, v, 0, column, stride, used, scale, d, D, BN, PRECISION)
        store_output(acc, l, o, first, tokens, 0, column, stride, d, D, BM)


# --- tiles: (bytes an element, padded width). Argued on paper and from the compile report, not measured: no GPU was at hand.
# sm_90: 128 queries do 128 flops a byte of K and V, which at 500 TFLOP/s is 3.9 TB/s from L2, below its ~5.5; 64 queries would be
# bound by it. One program an SM, 8 warps, 1000 tiles in 7.6 rounds of 132. tl.dot waits for each product, so the softmax lies bare between
# them, and 460-490 TFLOP/s is what others see of this form: 128 keys are waited for, rescaled for and reduced over half as often as 64
# would be. 248 registers, nothing spilled; two stages (160 KiB) load a tile ahead, 64 KiB in the 2.3 us of one. Heads of 64 take
# 64 keys in 128 registers, so that two programs an SM cover each other. On sm_100 128 x 128 spills.
# 80 serves every chip with 99 KiB, and the interpreter; its kernel takes pointers: 255 registers, 64 KiB, one program an SM.

TILES: Tiles = {
    80: {
        **{(2, D): tile(8, 2, BM=128, BN=64) for D in (64, 128)},
        **{(4, D): tile(4, 1, BM=64, BN=32) for D in (64, 128)},
    },
    90: {(2, 64): tile(8, 3, BM=128, BN=64), (2, 128): tile(8, 2, BM=128, BN=128)},
    100: {(2, 128): tile(8, 3, BM=128, BN=64)},
}

# --- op


def launch_block_causal(
    q_THd: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor, used: int, use_descriptors: bool | None = None
) -> torch.Tensor:
    """The kernel, on a GPU or under the interpreter; `described` None is by_descriptor's choice."""
    (tokens, heads, d), device, D = q_THd.shape, q_THd.device, padded_width(q_THd.shape[-1])
    if not 0 < used <= len(k_NHd):
        raise ValueError(f"{used} slots used of {len(k_NHd)}")
    o_THd = torch.empty((tokens, heads, d), dtype=q_THd.dtype, device=device)
    options = select_tile("block_causal", TILES, device, (q_THd.element_size(), D)).options()
    if uses_descriptors(device) if use_descriptors is None else use_descriptors:
        k, v = (descriptor(x, used, options["BN"], D) for x in (k_NHd, v_NHd))
        inputs, kernel = (descriptor(q_THd, tokens, options["BM"], D), k, v), block_causal_kernel
    else:
        inputs, kernel = tuple(x.contiguous() for x in (q_THd, k_NHd, v_NHd)), block_causal_pointer_kernel
    tiles = -(-tokens // options["BM"]) * heads
    kernel[(min(tiles, multiprocessors(device)),)](
        *inputs, o_THd, tokens, used, heads, softmax_scale(d),
        d=d, D=D, PRECISION=precision(q_THd.dtype), **options,
    )  # fmt: skip
    return o_THd


@torch.library.custom_op("everface::block_causal", mutates_args=(), device_types="cuda")
def block_causal_op(q_THd: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor, used: int) -> torch.Tensor:
    from everface.kernels.attention.backend import attend  # which knows this file's kernel among others

    return attend(q_THd, k_NHd, v_NHd, used)


@block_causal_op.register_fake
def _(q_THd: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor, used: int) -> torch.Tensor:
    return q_THd.new_empty(q_THd.shape)


def block_causal(q_THd: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor, used: int) -> torch.Tensor:
    """The op. Returns o_THd."""
    run = block_causal_op if runs_attention(q_THd, k_NHd, v_NHd) else block_causal_reference
    return run(q_THd, k_NHd, v_NHd, used)


# --- what CI compiles


def _compile_spec(chip: int, dtype: str, d: int) -> CompileSpec:
    chosen = select_tile("block_causal", TILES, chip, (2, padded_width(d)))
    size = dict(chosen.sizes)
    inputs = dict.fromkeys(("k", "v"), f"tensordesc<{dtype}[{size['BN']}, {padded_width(d)}]>")
    inputs |= {"q": f"tensordesc<{dtype}[{size['BM']}, {padded_width(d)}]>"}
    signature = (inputs if chip >= 90 else dict.fromkeys(inputs, f"*{dtype}")) | {"o": f"*{dtype}", "scale": "fp32"}
    signature |= dict.fromkeys(("tokens", "used", "heads"), "i32")
    sizes = size | {"d": d, "D": padded_width(d), "PRECISION": "tf32"}
    kernel = block_causal_kernel if chip >= 90 else block_causal_pointer_kernel
    return CompileSpec(f"block_causal {dtype} d{d}", kernel, signature, sizes, chosen.num_warps, chosen.num_stages, (chip,),
                 unaligned=("tokens", "used", "heads"), needs_wgmma=True)  # fmt: skip


COMPILE = [
    _compile_spec(chip, dtype, d)
    for dtype, d in (("bf16", 128), ("bf16", 48))
    for chip in (80, 90, 100)
]
