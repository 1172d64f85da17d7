"""Self-attention of one block of latent frames over the attention sink and the KV ring of its denoising step, in 16 bits.

Contract
    o = softmax(q . k[:used]^T / sqrt(d)) v[:used]          no mask: every token of the block sees the whole block
    q_THd           this block's queries, rotated at absolute positions
    k_NHd, v_NHd    rotated keys, and values: of the sink (the reference rolls ahead of the block, so its keys are rotated for this
                    block), then of the last window_blocks blocks, this one included. The order of the slots does not matter;
                    only the first `used` of them have been written
    ranges_HR2      int32, or None for all used slots: the keys that each head attends to, as R ranges (first slot, slots) that do not overlap.
                    A range may be empty, but not all of a head's. Slots in no range weigh nothing, but must be finite
    -> o_THd        dtype of q; softmax statistics in float32
    On a GPU heads and their width are side by side (strides d and 1), d is a multiple of 8, at most 128; token strides are free.
    The op over this and the other backends is self_attention.block_causal.
Cost
    4 T used H d flops: 3168 x 15,312 x 5120 -> 0.99 TFLOP a layer at 704x384 in steady state, 39.7 TFLOP a step.
    With ranges as many as they have slots, rounded up to tiles on a GPU. On a CPU heads with the same ranges are computed together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.attention.cross import cross_reference
from everface.kernels.attention.online_softmax import (
    attend_range,
    attend_range_pointers,
    init_state,
    load_queries,
    load_tile,
    store_output,
)
from everface.kernels.attention.operands import (
    check_used,
    dot_precision,
    padded_width,
    range_count,
    row_descriptor,
    softmax_scale,
    uses_descriptors,
)
from everface.kernels.cpu import LIBRARY, native_cpu, runs_native
from everface.kernels.launch import CompileSpec, Cost, Tiles, jit, metadata, multiprocessors, select_tile, tile, tl

# --- reference


def block_causal_reference(q_THd: Tensor, k_NHd: Tensor, v_NHd: Tensor, used: int, ranges_HR2: Tensor | None = None) -> Tensor:
    """Plain torch; differentiable; also the CPU path. Ranges on a GPU become a mask, as the host must not wait for them."""
    if ranges_HR2 is None:
        return cross_reference(q_THd[None], k_NHd[None, :used], v_NHd[None, :used])[0]
    if ranges_HR2.is_cuda:
        q, k, v = (x.transpose(0, 1) for x in (q_THd, k_NHd[:used], v_NHd[:used]))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_of(ranges_HR2, used)[:, None]).transpose(0, 1)
    o_THd = torch.empty_like(q_THd)
    for ranges, heads in group_heads(ranges_HR2).items():
        k, v = (torch.cat([x[first : first + count, heads] for first, count in ranges]) for x in (k_NHd, v_NHd))
        o_THd[:, heads] = cross_reference(q_THd[None, :, heads], k[None], v[None])[0]
    return o_THd


def runs_amx(q_THd: Tensor, k_NHd: Tensor, v_NHd: Tensor) -> bool:
    """Whether csrc/cpu/amx.cc takes these: bfloat16 on a CPU with AMX, heads a multiple of 16 wide, side by side."""
    d = q_THd.shape[-1]
    fits = all(t.dtype == torch.bfloat16 and t.stride(2) == 1 and t.stride(1) == d for t in (q_THd, k_NHd, v_NHd))
    return fits and d % 16 == 0 and k_NHd.stride(0) == v_NHd.stride(0) and runs_native(q_THd, k_NHd, v_NHd) and native_cpu().has_amx()


def block_causal_amx(q_THd: Tensor, k_NHd: Tensor, v_NHd: Tensor, used: int) -> Tensor:
    """csrc/cpu/amx.cc. Returns o_THd."""
    check_used(used, len(k_NHd))
    tokens, heads, d = q_THd.shape
    o_THd = torch.empty((tokens, heads, d), dtype=q_THd.dtype)
    strides = q_THd.stride(0), k_NHd.stride(0), o_THd.stride(0)
    addresses = (t.data_ptr() for t in (q_THd, k_NHd, v_NHd, o_THd))
    native_cpu().attend_block(*addresses, 0, *strides, tokens, used, heads, d, torch.get_num_threads())
    return o_THd


LIBRARY.define("block_causal_amx(Tensor q_THd, Tensor k_NHd, Tensor v_NHd, int used) -> Tensor")
LIBRARY.impl("block_causal_amx", block_causal_amx, "CPU")


def group_heads(ranges_HR2: Tensor) -> dict[tuple[tuple[int, int], ...], list[int]]:
    """Ranges that are not empty -> the heads that have them. Reads them on the host."""
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for head, ranges in enumerate(ranges_HR2.tolist()):
        groups.setdefault(tuple((first, count) for first, count in ranges if count), []).append(head)
    return groups


def mask_of(ranges_HR2: Tensor, used: int) -> Tensor:
    """Bool [H, used]: the slots that each head attends to."""
    first_HR1, count_HR1 = ranges_HR2[..., :1], ranges_HR2[..., 1:]
    slot_N = torch.arange(used, device=ranges_HR2.device)
    return ((slot_N >= first_HR1) & (slot_N < first_HR1 + count_HR1)).any(1)


# --- kernel


def cost(tokens: int, keys: float, heads: int, d: int, itemsize: int) -> Cost:
    """Of one call: two GEMMs of every query with every key; q, o, k, v moved once. `keys` is a mean over heads."""
    head_keys = round(keys * heads)
    return Cost(4 * tokens * head_keys * d, itemsize * d * 2 * (tokens * heads + head_keys))


def keys_read(used: int, heads: int, ranges_HR2: Tensor | None) -> float:
    """Keys that a query attends to, as a mean over heads. Waits for the ranges."""
    return used if ranges_HR2 is None else int(ranges_HR2[..., 1].sum()) / heads


def _launch_cost(a: dict[str, Any]) -> Cost:
    return cost(a["tokens"], keys_read(a["used"], a["heads"], a["ranges"]), a["heads"], a["d"], a["o"].element_size())


@jit(launch_metadata=metadata("block_causal", _launch_cost))
def block_causal_kernel(q, k, v, o, ranges, tokens, used, heads, scale, d: tl.constexpr, D: tl.constexpr,
                        BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Persistent: a program takes every n-th tile of BM queries of one head, head by head, so that programs which run at the same time
    read the keys and values of the same few heads from L2. q, k and v are descriptors [tokens or slots, heads * d]. ranges: None, or R a head."""
    tiles = tl.cdiv(tokens, BM)
    for tile_id in tl.range(tl.program_id(0), tiles * heads, tl.num_programs(0)):
        first, column = tile_id % tiles * BM, tile_id // tiles * d
        q_MD = load_queries(q, first, column, d, D)
        acc, l, m = init_state(BM, D)
        if ranges is None:
            acc, l, m = attend_range(acc, l, m, q_MD, k, v, 0, column, used, scale, BN, PRECISION)
        else:
            for at in tl.range(tile_id // tiles * R, tile_id // tiles * R + R):
                row, count = tl.load(ranges + 2 * at), tl.load(ranges + 2 * at + 1)
                acc, l, m = attend_range(acc, l, m, q_MD, k, v, row, column, count, scale, BN, PRECISION)
        store_output(acc, l, o, first, tokens, 0, column, heads * d, d, D, BM)


@jit(launch_metadata=metadata("block_causal", _launch_cost))
def block_causal_pointer_kernel(q, k, v, o, ranges, tokens, used, heads, scale, d: tl.constexpr, D: tl.constexpr,
                                BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """The same where all are pointers to contiguous rows of heads * d."""
    tiles, stride = tl.cdiv(tokens, BM), heads * d
    for tile_id in tl.range(tl.program_id(0), tiles * heads, tl.num_programs(0)):
        first, column = tile_id % tiles * BM, tile_id // tiles * d
        q_MD = load_tile(q, first, column, stride, tokens - first, d, D, BM)
        acc, l, m = init_state(BM, D)
        if ranges is None:
            acc, l, m = attend_range_pointers(acc, l, m, q_MD, k, v, 0, column, stride, used, scale, d, D, BN, PRECISION)
        else:
            for at in tl.range(tile_id // tiles * R, tile_id // tiles * R + R):
                row, count = tl.load(ranges + 2 * at), tl.load(ranges + 2 * at + 1)
                acc, l, m = attend_range_pointers(acc, l, m, q_MD, k, v, row, column, stride, count, scale, d, D, BN, PRECISION)
        store_output(acc, l, o, first, tokens, 0, column, stride, d, D, BM)


# --- tiles: (bytes an element, padded width). From arithmetic and the compile report, no other tried on a GPU.
# sm_90: 128 queries do 128 flops a byte of K and V, which at 500 TFLOP/s is 3.9 TB/s from L2, below its ~5.5; 64 queries would be
# bound by it. One program an SM, 8 warps, 1000 tiles in 7.6 rounds of 132. tl.dot waits for each result, so nothing overlaps the softmax:
# 414 TFLOP/s on an H200, where others measured 460-490 for kernels built this way. 128 keys a tile mean half as many waits, rescalings and reductions as 64.
# 248 registers, nothing spilled; two stages (160 KiB) load a tile ahead, 64 KiB in the 2.3 us of one. Heads of 64 take 64 keys in 128
# registers, so that two programs an SM overlap each other's softmax. On sm_100 128 x 128 spills.
# 80 serves every GPU with 99 KiB, and the interpreter; its kernel takes pointers: 255 registers, 64 KiB, one program an SM.

TILES: Tiles = {
    80: {
        **{(2, D): tile(8, 2, BM=128, BN=64) for D in (64, 128)},
        **{(4, D): tile(4, 1, BM=64, BN=32) for D in (64, 128)},
    },
    90: {(2, 64): tile(8, 3, BM=128, BN=64), (2, 128): tile(8, 2, BM=128, BN=128)},
    100: {(2, 128): tile(8, 3, BM=128, BN=64)},
}

# --- launch


def launch_block_causal(
    q_THd: Tensor, k_NHd: Tensor, v_NHd: Tensor, used: int, ranges_HR2: Tensor | None = None, use_descriptors: bool | None = None
) -> Tensor:  # fmt: skip
    """The kernel, on a GPU or under the interpreter; `use_descriptors` None is uses_descriptors' choice. Returns o_THd."""
    (tokens, heads, d), device, D = q_THd.shape, q_THd.device, padded_width(q_THd.shape[-1])
    check_used(used, len(k_NHd))
    o_THd = torch.empty((tokens, heads, d), dtype=q_THd.dtype, device=device)
    options = select_tile("block_causal", TILES, device, (q_THd.element_size(), D)).options()
    if uses_descriptors(device) if use_descriptors is None else use_descriptors:
        k, v = (row_descriptor(x, used, options["BN"], D) for x in (k_NHd, v_NHd))
        inputs, kernel = (row_descriptor(q_THd, tokens, options["BM"], D), k, v), block_causal_kernel
    else:
        inputs, kernel = tuple(x.contiguous() for x in (q_THd, k_NHd, v_NHd)), block_causal_pointer_kernel
    tiles = -(-tokens // options["BM"]) * heads
    kernel[(min(tiles, multiprocessors(device)),)](
        *inputs, o_THd, ranges_HR2, tokens, used, heads, softmax_scale(d),
        d=d, D=D, PRECISION=dot_precision(q_THd.dtype), R=range_count(ranges_HR2), **options,
    )  # fmt: skip
    return o_THd


# --- what CI compiles


def _compile_spec(arch: int, dtype: str, d: int, ranges: int = 0) -> CompileSpec:
    selected = select_tile("block_causal", TILES, arch, (2, padded_width(d)))
    size = dict(selected.sizes)
    inputs = dict.fromkeys(("k", "v"), f"tensordesc<{dtype}[{size['BN']}, {padded_width(d)}]>")
    inputs |= {"q": f"tensordesc<{dtype}[{size['BM']}, {padded_width(d)}]>"}
    signature = (inputs if arch >= 90 else dict.fromkeys(inputs, f"*{dtype}")) | {"o": f"*{dtype}", "scale": "fp32"}
    signature |= dict.fromkeys(("tokens", "used", "heads"), "i32")
    sizes = size | {"d": d, "D": padded_width(d), "PRECISION": "tf32", "R": ranges}
    signature, sizes = (signature | {"ranges": "*i32"}, sizes) if ranges else (signature, sizes | {"ranges": None})
    kernel = block_causal_kernel if arch >= 90 else block_causal_pointer_kernel
    return CompileSpec(f"block_causal {dtype} d{d}" + " ranges" * (ranges > 0), kernel, signature, sizes, selected.num_warps, selected.num_stages, (arch,),
                       unaligned=("tokens", "used", "heads"), needs_wgmma=True)  # fmt: skip


COMPILE = [
    _compile_spec(arch, dtype, d, ranges)
    for dtype, d, ranges in (("bf16", 128, 0), ("bf16", 48, 0), ("bf16", 128, 3))
    for arch in (80, 90, 100)
]  # fmt: skip
