"""Self-attention of one block over sink and ring as block_causal computes it, with queries, keys, values and weights in e4m3.

Contract
    s = q . k[:used]^T * qk_scale[h] / sqrt(d)             no mask: the block sees itself whole
    p = e4m3(256 exp(s - max s))                           the largest weight is 256, not 1: see Codes
    o = p v[:used] / sum_s 256 exp(s - max s) * v_scale[h]
    q_THd             codes of this block's queries; q * its share of qk_scale is what block_causal takes, and so for keys and values
    k_NHd             codes of keys. The order of the slots carries no meaning; only the first `used` of them have been written
    vT_HdN            codes of values, transposed: the slots of a channel lie side by side
    qk_scale_H, v_scale_H       float32
    -> o_THd bfloat16; softmax statistics, sums of products and the two scales in float32
    On a GPU rows of V begin at multiples of 16 bytes (whoever holds them pads), heads lie side by side, d is a multiple of 16, at most
    128. From sm_90 on: before it descriptors are no hardware, and sm_80 knows no e4m3.
Codes
    e4m3 has 4 significant bits from 2^-6 to 448 and loses them one by one down to 2^-9. model/coding.py argues the scales of q, k, v.
    Weights lie in 0..1 and are many: at 256 times their size those below 2^-14 of the largest begin to lose bits, those below 2^-18
    vanish; uncoded they would from 2^-6 and 2^-10 on. The sum takes them before they are coded, so that it has no bias of theirs.
    Which of two maxima a weight is coded against, the last or the one so far, is a factor that is no power of two: the kernel and the
    reference differ by roundings, not in kind.
Why V lies transposed
    The 8-bit tensor cores want both operands along the sum. 16 bits are transposed on their way for free, 8 bits through registers.
Cost
    4 T used H d flops, 0.99 TFLOP a layer at 704x384 in steady state; half the bytes of block_causal.
"""

from __future__ import annotations

from typing import Any

import torch

from everface.kernels.attention.cross import descriptor, padded_width, softmax_scale
from everface.kernels.attention.online_softmax import init_state, load_queries, store_output
from everface.kernels.fused.row_primitives import E4M3
from everface.kernels.launch import (
    CompileSpec,
    Cost,
    Tiles,
    arch,
    jit,
    metadata,
    multiprocessors,
    runs_triton,
    select_tile,
    tile,
    tl,
)

LIFT = 8.0  # log2 of what weights are multiplied by before they are coded

# --- reference


def block_causal_fp8_reference(
    q_THd: torch.Tensor,
    k_NHd: torch.Tensor,
    vT_HdN: torch.Tensor,
    used: int,
    qk_scale_H: torch.Tensor,
    v_scale_H: torch.Tensor,
) -> torch.Tensor:
    """Plain torch over codes, float32 products; also the CPU path. Holds the weights of all heads at once."""
    k_SHd, vT_HdS = k_NHd[:used].float(), vT_HdN[..., :used].float()
    scale_H11 = (qk_scale_H * softmax_scale(q_THd.shape[-1]))[:, None, None]
    s_HTS = q_THd.float().transpose(0, 1) @ k_SHd.permute(1, 2, 0) * scale_H11
    p_HTS = torch.exp2(s_HTS - s_HTS.amax(-1, keepdim=True) + LIFT)
    o_HTd = p_HTS.to(E4M3).float() @ vT_HdS.transpose(1, 2) / p_HTS.sum(-1, keepdim=True) * v_scale_H[:, None, None]
    return o_HTd.transpose(0, 1).to(torch.bfloat16)


# --- kernel


def cost(tokens: int, keys: int, heads: int, d: int) -> Cost:
    """Of one call: two products of every query with every key; q, k, v moved once, o in two bytes."""
    return Cost(4 * tokens * keys * heads * d, heads * d * (3 * tokens + 2 * keys))


def _cost(a: dict[str, Any]) -> Cost:
    return cost(a["tokens"], a["used"], a["heads"], a["d"])


@jit
def softmax_step(acc, l, m, q, k, vT, seen, scale, LIFT: tl.constexpr):
    """One tile of keys k_SD and values vT_DS; columns that are not `seen` (None: all are) weigh nothing. At least one must be."""
    s = tl.dot(q, k.T)
    if seen is not None:
        s = tl.where(seen[None, :], s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - (top - LIFT)[:, None])
    shrink = tl.exp2(m - top)
    acc = tl.dot(p.to(vT.dtype), vT.T, acc * shrink[:, None])
    return acc, l * shrink + tl.sum(p, 1), top


@jit
def attend_range(acc, l, m, q, keys, values, column, count, scale, BN: tl.constexpr, LIFT: tl.constexpr):
    """Fold in the first `count` keys and values of one head: whole tiles without a mask, then what is left with one. Beside the range
    a descriptor reads zeros."""
    whole = count // BN * BN
    for first in tl.range(0, whole, BN):  # type: ignore[reportGeneralTypeIssues]
        acc, l, m = softmax_step(acc, l, m, q, keys.load([first, column]), values.load([column, first]), None, scale, LIFT)
    if whole < count:
        seen = tl.arange(0, BN) < count - whole
        acc, l, m = softmax_step(acc, l, m, q, keys.load([whole, column]), values.load([column, whole]), seen, scale, LIFT)
    return acc, l, m


@jit(launch_metadata=metadata("block_causal_fp8", _cost))
def block_causal_fp8_kernel(
    q, k, v, qk_scale, v_scale, o, tokens, used, heads, scale, d: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    LIFT: tl.constexpr,
):  # fmt: skip
    """Persistent, as block_causal_kernel: every n-th tile of BM queries of one head, head by head. Queries and keys are descriptors
    [tokens or slots, heads * d], values [heads * d, slots]."""
    tiles = tl.cdiv(tokens, BM)
    for tile_id in tl.range(tl.program_id(0), tiles * heads, tl.num_programs(0)):
        first, head = tile_id % tiles * BM, tile_id // tiles
        column = head * d
        log2_scale = scale * tl.load(qk_scale + head)
        q_MD = load_queries(q, first, column, d, D)
        acc, l, m = init_state(BM, D)
        acc, l, m = attend_range(acc, l, m, q_MD, k, v, column, used, log2_scale, BN, LIFT)
        store_output(acc * tl.load(v_scale + head), l, o, first, tokens, 0, column, heads * d, d, D, BM)


# --- tiles: by padded width. Argued on paper and from the compile report, not measured: no GPU was at hand.
# tl.dot waits for each product, so within a program the softmax lies bare between two of them, and at this rate of products it takes as
# long as they do (1.9e9 exponentials a layer, 0.5 ms). Two programs an SM cover each other: 64 x 128 with 4 warps takes 255 registers
# and 72 KiB. 64 queries do 128 flops a byte of K and V: above 700 TFLOP/s L2 (5.5 TB/s) would bound it, which nobody has reached in this
# form. 128 x 128 with 8 warps (254 registers) halves that traffic, one program an SM, and so does 128 x 256 (255); 64 x 256 spills.
# 80 serves the interpreter only.

TILES: Tiles = {80: {D: tile(4, 2, BM=64, BN=128) for D in (64, 128)}}
PROGRAMS = 2  # an SM

# --- op


def values(x_HdS: torch.Tensor, used: int, BN: int, D: int) -> Any:
    """The first `used` slots of x [heads, d, slots], seen as [heads * d, slots], read in tiles [D, BN]; what lies outside reads as zero."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    heads, d, _ = x_HdS.shape
    pitch = x_HdS.stride(1)
    if x_HdS.stride(2) != 1 or x_HdS.stride(0) != d * pitch:
        raise ValueError(f"the slots of a channel must lie side by side, and the channels of all heads: strides {x_HdS.stride()}")
    if x_HdS.data_ptr() % 16 or pitch % 16:
        raise ValueError(f"channels must begin at multiples of 16 bytes, strides are {x_HdS.stride()}")
    return TensorDescriptor(x_HdS, [heads * d, used], [pitch, 1], [D, BN])


def launch_block_causal_fp8(
    q_THd: torch.Tensor,
    k_NHd: torch.Tensor,
    vT_HdN: torch.Tensor,
    used: int,
    qk_scale_H: torch.Tensor,
    v_scale_H: torch.Tensor,
) -> torch.Tensor:
    """The kernel, on a GPU or under the interpreter."""
    (tokens, heads, d), device = q_THd.shape, q_THd.device
    if not 0 < used <= len(k_NHd):
        raise ValueError(f"{used} slots used of {len(k_NHd)}")
    o_THd = torch.empty((tokens, heads, d), dtype=torch.bfloat16, device=device)
    D = padded_width(d)
    options = select_tile("block_causal_fp8", TILES, device, D).options()
    k, v = descriptor(k_NHd, used, options["BN"], D), values(vT_HdN, used, options["BN"], D)
    tiles = -(-tokens // options["BM"]) * heads
    programs = min(tiles, PROGRAMS * multiprocessors(device))
    block_causal_fp8_kernel[(programs,)](
        descriptor(q_THd, tokens, options["BM"], D), k, v, qk_scale_H, v_scale_H, o_THd, tokens, used, heads, softmax_scale(d),
        d=d, D=D, LIFT=LIFT, **options,
    )  # fmt: skip
    return o_THd


@torch.library.custom_op("everface::block_causal_fp8", mutates_args=(), device_types="cuda")
def block_causal_fp8_op(
    q_THd: torch.Tensor,
    k_NHd: torch.Tensor,
    vT_HdN: torch.Tensor,
    used: int,
    qk_scale_H: torch.Tensor,
    v_scale_H: torch.Tensor,
) -> torch.Tensor:
    from everface.kernels.attention.backend import attend_fp8  # which knows this file's kernel and another

    return attend_fp8(q_THd, k_NHd, vT_HdN, used, qk_scale_H, v_scale_H)


@block_causal_fp8_op.register_fake
def _(
    q_THd: torch.Tensor,
    k_NHd: torch.Tensor,
    vT_HdN: torch.Tensor,
    used: int,
    qk_scale_H: torch.Tensor,
    v_scale_H: torch.Tensor,
) -> torch.Tensor:
    return q_THd.new_empty(q_THd.shape, dtype=torch.bfloat16)


def runs_fp8_attention(*tensors: torch.Tensor) -> bool:
    """Whether the kernel runs on these: where kernels run, from sm_90 on."""
    return runs_triton(*tensors) and arch(tensors[0].device) >= 90


def block_causal_fp8(
    q_THd: torch.Tensor,
    k_NHd: torch.Tensor,
    vT_HdN: torch.Tensor,
    used: int,
    qk_scale_H: torch.Tensor,
    v_scale_H: torch.Tensor,
) -> torch.Tensor:
    """The op. Returns o_THd."""
    run = block_causal_fp8_op if runs_fp8_attention(q_THd, k_NHd) else block_causal_fp8_reference
    return run(q_THd, k_NHd, vT_HdN, used, qk_scale_H, v_scale_H)


# --- what CI compiles


def _compile_spec(chip: int, d: int) -> CompileSpec:
    chosen = select_tile("block_causal_fp8", TILES, chip, padded_width(d))
    size = dict(chosen.sizes)
    D = padded_width(d)
    signature = {name: f"tensordesc<fp8e4nv[{size[rows]}, {D}]>" for name, rows in (("q", "BM"), ("k", "BN"))}
    signature |= {"v": f"tensordesc<fp8e4nv[{D}, {size['BN']}]>"}
    signature |= {"qk_scale": "*fp32", "v_scale": "*fp32", "o": "*bf16", "scale": "fp32"}
    unaligned = ("tokens", "used", "heads")
    sizes = size | {"d": d, "D": D, "LIFT": LIFT}
    return CompileSpec(f"block_causal_fp8 d{d}", block_causal_fp8_kernel, signature | dict.fromkeys(unaligned, "i32"), sizes, chosen.num_warps,
                 chosen.num_stages, (chip,), unaligned=unaligned, needs_wgmma=True)  # fmt: skip


COMPILE = [_compile_spec(chip, d) for d in (128, 48) for chip in (90, 100)]
