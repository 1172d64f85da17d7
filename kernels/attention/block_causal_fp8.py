"""Self-attention of one block over sink and ring as in block_causal, with queries, keys, values and weights in e4m3.

Contract
    s = q . k[:used]^T * qk_scale[h] / sqrt(d)             no mask: every token of the block sees the whole block
    p = e4m3(256 exp(s - max s))                           the largest weight is 256, not 1: see Quantization
    o = p v[:used] / sum_s 256 exp(s - max s) * v_scale[h]
    q_THd             quantized queries of this block; q times its share of qk_scale is what block_causal takes, and so for keys and values
    k_NHd             quantized keys. The order of the slots does not matter; only the first `used` of them have been written
    vT_HdN            quantized values, transposed: the slots of a channel are side by side
    qk_scale_H, v_scale_H       float32
    ranges_HR2        int32 or None, as in block_causal
    -> o_THd bfloat16; softmax statistics, sums of products and the two scales in float32
    On a GPU rows of V begin at multiples of 16 bytes (the caller pads), heads are side by side, d is a multiple of 16, at most 128.
    From sm_90 on: older GPUs have no TMA, and sm_80 has no e4m3.
    The op over this and the other backend is self_attention.block_causal_fp8.
Quantization
    e4m3 has 4 significant bits from 2^-6 to 448 and loses them one by one down to 2^-9. networks/transformer/qkv_scales.py derives the scales of q, k, v.
    Weights are in 0..1 and many. At 256 times their size those below 2^-14 of the largest begin to lose bits, and those below 2^-18 vanish;
    without the factor that would begin at 2^-6 and 2^-10. The sum is taken before the weights are quantized, so it has no bias from it.
    A weight is quantized relative to a maximum, either the final one or the one so far. The two differ by a factor that is no power of
    two, so the kernel and the reference round differently and are equal only within those roundings.
Why V is transposed
    The 8-bit tensor cores want both operands along the sum. 16 bits are transposed on their way for free, 8 bits through registers.
Cost
    4 T used H d flops, 0.99 TFLOP a layer at 704x384 in steady state; half the bytes of block_causal. With ranges as there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everface.kernels.attention.block_causal import keys_read, mask_of
from everface.kernels.attention.online_softmax import attend_from, attend_range, init_state, load_queries, store_output
from everface.kernels.attention.operands import (
    channel_descriptor,
    check_used,
    padded_width,
    range_count,
    row_descriptor,
    softmax_scale,
)
from everface.kernels.fused.row_primitives import E4M3
from everface.kernels.launch import CompileSpec, Cost, Tiles, jit, metadata, multiprocessors, select_tile, tile, tl

LIFT = 8.0  # log2 of the factor of the weights before they are quantized

# --- reference


def block_causal_fp8_reference(
    q_THd: Tensor, k_NHd: Tensor, vT_HdN: Tensor, used: int, qk_scale_H: Tensor, v_scale_H: Tensor, ranges_HR2: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Plain torch over quantized values, GEMMs in float32; also the CPU path. Holds the weights of all heads at once; ranges save nothing."""
    k_SHd, vT_HdS = k_NHd[:used].float(), vT_HdN[..., :used].float()
    scale_H11 = (qk_scale_H * softmax_scale(q_THd.shape[-1]))[:, None, None]
    s_HTS = q_THd.float().transpose(0, 1) @ k_SHd.permute(1, 2, 0) * scale_H11
    if ranges_HR2 is not None:
        s_HTS = s_HTS.masked_fill(~mask_of(ranges_HR2, used)[:, None], float("-inf"))
    p_HTS = torch.exp2(s_HTS - s_HTS.amax(-1, keepdim=True) + LIFT)
    o_HTd = p_HTS.to(E4M3).float() @ vT_HdS.transpose(1, 2) / p_HTS.sum(-1, keepdim=True) * v_scale_H[:, None, None]
    return o_HTd.transpose(0, 1).to(torch.bfloat16)


# --- kernel


def cost(tokens: int, keys: float, heads: int, d: int) -> Cost:
    """Of one call: two GEMMs of every query with every key; q, k, v moved once, o in two bytes. `keys` is a mean over heads."""
    head_keys = round(keys * heads)
    return Cost(4 * tokens * head_keys * d, d * (3 * tokens * heads + 2 * head_keys))


def _launch_cost(a: dict[str, Any]) -> Cost:
    return cost(a["tokens"], keys_read(a["used"], a["heads"], a["ranges"]), a["heads"], a["d"])


@jit(launch_metadata=metadata("block_causal_fp8", _launch_cost))
def block_causal_fp8_kernel(
    q, k, v, qk_scale, v_scale, o, ranges, tokens, used, heads, scale, d: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    LIFT: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Persistent, as block_causal_kernel: every n-th tile of BM queries of one head, head by head. Queries and keys are descriptors
    [tokens or slots, heads * d], values [heads * d, slots]. ranges: None, or R a head."""
    tiles = tl.cdiv(tokens, BM)
    for tile_id in tl.range(tl.program_id(0), tiles * heads, tl.num_programs(0)):
        first, head = tile_id % tiles * BM, tile_id // tiles
        column = head * d
        log2_scale = scale * tl.load(qk_scale + head)
        q_MD = load_queries(q, first, column, d, D)
        acc, l, m = init_state(BM, D)
        if ranges is None:
            acc, l, m = attend_range(acc, l, m, q_MD, k, v, 0, column, used, log2_scale, BN, "tf32", True, LIFT)
        else:
            for at in tl.range(head * R, head * R + R):
                row, count = tl.load(ranges + 2 * at), tl.load(ranges + 2 * at + 1)
                acc, l, m = attend_from(acc, l, m, q_MD, k, v, row, column, count, log2_scale, BN, LIFT)
        store_output(acc * tl.load(v_scale + head), l, o, first, tokens, 0, column, heads * d, d, D, BM)


# --- tiles: by padded width. From arithmetic and the compile report; 616 TFLOP/s on an H200, no other tried.
# tl.dot waits for each result, so within a program nothing overlaps the softmax, and at the 8-bit rate it takes as long as the GEMMs
# (1.9e9 exponentials a layer, 0.5 ms). Two programs an SM overlap each other: 64 x 128 with 4 warps takes 255 registers and 72 KiB.
# 64 queries do 128 flops a byte of K and V: above 700 TFLOP/s L2 (5.5 TB/s) would be the bound, which no kernel built this way has reached.
# 128 x 128 with 8 warps (254 registers) halves that traffic, one program an SM, and so does 128 x 256 (255); 64 x 256 spills.
# 80 serves the interpreter only.

TILES: Tiles = {80: {D: tile(4, 2, BM=64, BN=128) for D in (64, 128)}}
PROGRAMS = 2  # an SM

# --- launch


def launch_block_causal_fp8(
    q_THd: Tensor, k_NHd: Tensor, vT_HdN: Tensor, used: int, qk_scale_H: Tensor, v_scale_H: Tensor, ranges_HR2: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The kernel, on a GPU or under the interpreter. Returns o_THd in bfloat16."""
    (tokens, heads, d), device = q_THd.shape, q_THd.device
    check_used(used, len(k_NHd))
    o_THd = torch.empty((tokens, heads, d), dtype=torch.bfloat16, device=device)
    D = padded_width(d)
    options = select_tile("block_causal_fp8", TILES, device, D).options()
    k, v = row_descriptor(k_NHd, used, options["BN"], D), channel_descriptor(vT_HdN, used, options["BN"], D)
    tiles = -(-tokens // options["BM"]) * heads
    programs = min(tiles, PROGRAMS * multiprocessors(device))
    block_causal_fp8_kernel[(programs,)](
        row_descriptor(q_THd, tokens, options["BM"], D), k, v, qk_scale_H, v_scale_H, o_THd, ranges_HR2, tokens, used, heads,
        softmax_scale(d), d=d, D=D, LIFT=LIFT, R=range_count(ranges_HR2), **options,
    )  # fmt: skip
    return o_THd


# --- what CI compiles


def _compile_spec(arch: int, d: int, ranges: int = 0) -> CompileSpec:
    selected = select_tile("block_causal_fp8", TILES, arch, padded_width(d))
    size = dict(selected.sizes)
    D = padded_width(d)
    signature = {name: f"tensordesc<fp8e4nv[{size[rows]}, {D}]>" for name, rows in (("q", "BM"), ("k", "BN"))}
    signature |= {"v": f"tensordesc<fp8e4nv[{D}, {size['BN']}]>"}
    signature |= {"qk_scale": "*fp32", "v_scale": "*fp32", "o": "*bf16", "scale": "fp32"}
    unaligned = ("tokens", "used", "heads")
    sizes = size | {"d": d, "D": D, "LIFT": LIFT, "R": ranges}
    signature, sizes = (signature | {"ranges": "*i32"}, sizes) if ranges else (signature, sizes | {"ranges": None})
    return CompileSpec(f"block_causal_fp8 d{d}" + " ranges" * (ranges > 0), block_causal_fp8_kernel, signature | dict.fromkeys(unaligned, "i32"), sizes,
                       selected.num_warps, selected.num_stages, (arch,), unaligned=unaligned,
                       must_not_spill=not (ranges and arch == 100), needs_wgmma=True)  # fmt: skip


COMPILE = [_compile_spec(arch, d, ranges) for d, ranges in ((128, 0), (48, 0), (128, 3)) for arch in (90, 100)]
