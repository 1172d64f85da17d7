"""Attention of every query over a short list of keys: text (512 keys, the same for all queries) and audio (5 keys a frame).

Contract
    o[b,t,h] = sum_s softmax_s(q[b,t,h] . k[b,s,h] / sqrt(d)) v[b,s,h]          no mask, no bias
    q_BTHd, k_BSHd, v_BSHd -> o_BTHd, all of one floating dtype; softmax statistics in float32
    k and v may have batch 1 and then serve every batch row of q
    On a GPU heads and their width are side by side (strides d and 1), d is a multiple of 8, at most 128; what is not contiguous is copied.
    cross_quantized: the same o in e4m3 for the GEMM that follows, quantized_BTHd and scale_BT1, from a scale_1 with |v| <= 448 scale_1.
    o is a mean of values, so the scale of the values bounds it too: it is made once a session and saves a pass over whole rows.
Cost
    4 B T S H d flops. Text at 704x384: 3168 x 512 x 5120 -> 33 GFLOP a layer, bound by tensor cores;
    audio: 5 keys, bound by reading q and writing o (65 MB a layer in bf16).
    e4m3 halves the bytes of o and saves the 49 MB of linear/quantize_rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.attention.native_gradient import native_attention, operands
from everface.kernels.attention.online_softmax import (
    attend_range,
    attend_range_pointers,
    init_state,
    load_queries,
    load_tile,
    softmax_step,
    store_output,
)
from everface.kernels.attention.operands import (
    dot_precision,
    padded_width,
    row_descriptor,
    runs_attention,
    softmax_scale,
    uses_descriptors,
)
from everface.kernels.cpu import native_cpu, runs_native
from everface.kernels.fused.row_primitives import to_e4m3
from everface.kernels.launch import CompileSpec, Cost, Tiles, jit, metadata, select_tile, tile, tl
from everface.kernels.linear.quantize_rows import writes_e4m3

SINGLE_TILE_KEYS = 16  # up to this many keys are one tile, held in registers: no loop, no running maximum

# --- reference


def cross_reference(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """Plain torch; differentiable; also the CPU path."""
    batch = q_BTHd.shape[0]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BSHd, v_BSHd))
    return F.scaled_dot_product_attention(q, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)).transpose(1, 2)


def cross_quantized_reference(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, scale_1: Tensor) -> tuple[Tensor, Tensor]:
    """Plain torch; also the CPU path."""
    o_BTHd = cross_reference(q_BTHd.float(), k_BSHd.float(), v_BSHd.float()) / scale_1
    return to_e4m3(o_BTHd), scale_1.expand(*q_BTHd.shape[:2], 1).contiguous()


# --- kernel


def cost(batch: int, tokens: int, keys: int, heads: int, d: int, kv_batch: int, itemsize: int) -> Cost:
    """Of one call: two GEMMs of every query with every key; q, o, k, v moved once."""
    return Cost(4 * batch * tokens * keys * heads * d, itemsize * heads * d * 2 * (batch * tokens + kv_batch * keys))


def _launch_cost(a: dict[str, Any]) -> Cost:
    return cost(a["batch"], a["tokens"], a["keys"], a["heads"], a["d"], a["batch"] if a["kv_B"] else 1, a["o"].element_size())


@jit
def rescale(l, scale_1, row_scales, first, tokens, row, BM: tl.constexpr):
    """The sums of weights times the scale of o, so that dividing by them gives e4m3 values; the first head stores it for every row."""
    if scale_1 is not None:
        scale = tl.load(scale_1)
        l = l * scale
        t = first + tl.arange(0, BM)
        tl.store(row_scales + row + t, tl.zeros([BM], tl.float32) + scale, mask=(t < tokens) & (tl.program_id(1) == 0))
    return l


@jit(launch_metadata=metadata("cross", _launch_cost))
def cross_kernel(q, k, v, o, scale_1, row_scales, batch, tokens, keys, heads, kv_B, scale, d: tl.constexpr, D: tl.constexpr,
                 BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, ONE: tl.constexpr):  # fmt: skip
    """One program: BM queries of one head and batch row over all keys. ONE: they are a single tile, which needs no running softmax.
    q, k and v are descriptors [rows, heads * d]; batch row b of k and v begins at row b * kv_B. With a scale_1 o is in e4m3."""
    first, column, b = tl.program_id(0) * BM, tl.program_id(1) * d, tl.program_id(2)
    q_MD = load_queries(q, b * tokens + first, column, d, D)
    acc, l, m = init_state(BM, D)
    if ONE:
        k_SD, v_SD = k.load([b * kv_B, column]), v.load([b * kv_B, column])
        acc, l, m = softmax_step(acc, l, m, q_MD, k_SD.T, v_SD, tl.arange(0, BN) < keys, scale, PRECISION)
    else:
        acc, l, m = attend_range(acc, l, m, q_MD, k, v, b * kv_B, column, keys, scale, BN, PRECISION)
    l = rescale(l, scale_1, row_scales, first, tokens, b * tokens, BM)
    store_output(acc, l, o, first, tokens, b * tokens, column, heads * d, d, D, BM)


@jit(launch_metadata=metadata("cross", _launch_cost))
def cross_pointer_kernel(q, k, v, o, scale_1, row_scales, batch, tokens, keys, heads, kv_B, scale, d: tl.constexpr, D: tl.constexpr,
                         BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, ONE: tl.constexpr):  # fmt: skip
    """The same where q, k and v are pointers to contiguous rows of heads * d."""
    first, column, b, stride = tl.program_id(0) * BM, tl.program_id(1) * d, tl.program_id(2), heads * d
    q_MD = load_tile(q, b * tokens + first, column, stride, tokens - first, d, D, BM)
    acc, l, m = init_state(BM, D)
    if ONE:
        k_SD = load_tile(k, b * kv_B, column, stride, keys, d, D, BN)
        v_SD = load_tile(v, b * kv_B, column, stride, keys, d, D, BN)
        acc, l, m = softmax_step(acc, l, m, q_MD, k_SD.T, v_SD, tl.arange(0, BN) < keys, scale, PRECISION)
    else:
        acc, l, m = attend_range_pointers(acc, l, m, q_MD, k, v, b * kv_B, column, stride, keys, scale, d, D, BN, PRECISION)
    l = rescale(l, scale_1, row_scales, first, tokens, b * tokens, BM)
    store_output(acc, l, o, first, tokens, b * tokens, column, stride, d, D, BM)


# --- tiles: (keys, bytes an element, padded width). From arithmetic and the compile report, no other tried on a GPU.
# On an H200 512 keys take 88 us, cuDNN 64; 5 keys 24, cuDNN 32.
# Short: 5 keys, 10 flops a byte of q and o: memory. 64 queries are 16 KiB in and out a program, 4 warps, several programs an SM.
# Long: 512 keys, K and V of a head (256 KiB) stay in L2 for its 25 tiles; 128 queries do 128 flops a byte of that.
# 4 warps hold them in 255 registers without a spill, 97 KiB: two programs an SM, of which one computes its softmax during the GEMMs of the
# other. 64 queries would leave room for more, and read K and V twice as often: L2 would bound them to 352 TFLOP/s.
# 80 serves every GPU with 99 KiB, and the interpreter; its kernels take pointers.

TILES: Tiles = {
    80: {
        **{("short", size, D): tile(4, 1, BM=64, BN=16) for size in (2, 4) for D in (64, 128)},
        **{("long", 2, D): tile(8, 2, BM=128, BN=64) for D in (64, 128)},
        **{("long", 4, D): tile(4, 1, BM=64, BN=32) for D in (64, 128)},
    },
    90: {
        ("long", 2, 64): tile(8, 3, BM=128, BN=64),
        ("long", 2, 128): tile(4, 2, BM=128, BN=64),
    },
}

# --- op


def launch_cross(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, use_descriptors: bool | None = None) -> Tensor:
    """The kernel, on a GPU or under the interpreter; `use_descriptors` None is uses_descriptors' choice. Returns o_BTHd."""
    o_BTHd = torch.empty_like(q_BTHd, memory_format=torch.contiguous_format)
    _launch(q_BTHd, k_BSHd, v_BSHd, o_BTHd, None, None, use_descriptors)
    return o_BTHd


def launch_cross_quantized(
    q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, scale_1: Tensor, use_descriptors: bool | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same in e4m3. Returns (quantized_BTHd, scale_BT1)."""
    quantized_BTHd = torch.empty(q_BTHd.shape, dtype=torch.float8_e4m3fn, device=q_BTHd.device)
    scale_BT1 = torch.empty((*q_BTHd.shape[:2], 1), dtype=torch.float32, device=q_BTHd.device)
    _launch(q_BTHd, k_BSHd, v_BSHd, quantized_BTHd, scale_1, scale_BT1, use_descriptors)
    return quantized_BTHd, scale_BT1


def _launch(
    q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, o_BTHd: Tensor, scale_1: Tensor | None,
    scale_BT1: Tensor | None, use_descriptors: bool | None,
) -> None:  # fmt: skip
    (batch, tokens, heads, d), (kv_batch, keys) = q_BTHd.shape, k_BSHd.shape[:2]
    q, k, v = q_BTHd.contiguous(), k_BSHd.contiguous(), v_BSHd.contiguous()
    one, D = keys <= SINGLE_TILE_KEYS, padded_width(d)
    options = select_tile("cross", TILES, q.device, ("short" if one else "long", q.element_size(), D)).options()
    inputs, kernel = (q, k, v), cross_pointer_kernel
    if uses_descriptors(q.device) if use_descriptors is None else use_descriptors:
        inputs, kernel = (
            row_descriptor(q, batch * tokens, options["BM"], D), *(row_descriptor(x, kv_batch * keys, options["BN"], D) for x in (k, v))
        ), cross_kernel  # fmt: skip
    kernel[(-(-tokens // options["BM"]), heads, batch)](
        *inputs, o_BTHd, scale_1, scale_BT1, batch, tokens, keys, heads, keys if kv_batch > 1 else 0, softmax_scale(d),
        d=d, D=D, PRECISION=dot_precision(q.dtype), ONE=one, **options,
    )  # fmt: skip


@torch.library.custom_op("everface::cross", mutates_args=(), device_types="cuda")
def cross_op(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    return launch_cross(q_BTHd, k_BSHd, v_BSHd)


@cross_op.register_fake
def _(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    return q_BTHd.new_empty(q_BTHd.shape)


def cross(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """The op. Returns o_BTHd."""
    if runs_attention(q_BTHd, k_BSHd, v_BSHd):
        return cross_op(q_BTHd, k_BSHd, v_BSHd)
    if k_BSHd.shape[1] <= SINGLE_TILE_KEYS and q_BTHd.dtype == k_BSHd.dtype == v_BSHd.dtype and runs_native(q_BTHd, k_BSHd, v_BSHd):
        return cross_native(q_BTHd, k_BSHd, v_BSHd)
    if (given := operands(q_BTHd, k_BSHd, v_BSHd)) is not None:
        return native_attention(*given)
    return cross_reference(q_BTHd, k_BSHd, v_BSHd)


def cross_native(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """csrc/cpu, for so few keys that a query's are read at once. Returns o_BTHd."""
    q, k, v = q_BTHd.contiguous(), k_BSHd.contiguous(), v_BSHd.contiguous()
    o, (batch, tokens, heads, width), (key_batch, keys) = torch.empty_like(q), q.shape, k.shape[:2]
    addresses = (t.data_ptr() for t in (q, k, v, o))
    native_cpu().attend_few_keys(*addresses, q.dtype == torch.bfloat16, batch, key_batch, tokens, keys, heads, width, torch.get_num_threads())
    return o


@torch.library.custom_op("everface::cross_quantized", mutates_args=(), device_types="cuda")
def cross_quantized_op(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, scale_1: Tensor) -> tuple[Tensor, Tensor]:
    return launch_cross_quantized(q_BTHd, k_BSHd, v_BSHd, scale_1)


@cross_quantized_op.register_fake
def _(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, scale_1: Tensor) -> tuple[Tensor, Tensor]:
    return q_BTHd.new_empty(q_BTHd.shape, dtype=torch.float8_e4m3fn), scale_1.new_empty((*q_BTHd.shape[:2], 1))


def cross_quantized(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, scale_1: Tensor) -> tuple[Tensor, Tensor]:
    """The op with its result in e4m3. Returns (quantized_BTHd, scale_BT1)."""
    if runs_attention(q_BTHd, k_BSHd, v_BSHd) and writes_e4m3(q_BTHd):
        return cross_quantized_op(q_BTHd, k_BSHd, v_BSHd, scale_1)
    return cross_quantized_reference(q_BTHd, k_BSHd, v_BSHd, scale_1)


# --- what CI compiles


def _compile_spec(arch: int, keys: str, dtype: str, d: int, quantized: bool = False) -> CompileSpec:
    selected = select_tile("cross", TILES, arch, (keys, 2, padded_width(d)))
    size = dict(selected.sizes)
    tiles = {name: f"tensordesc<{dtype}[{size[rows]}, {padded_width(d)}]>" for name, rows in (("q", "BM"), ("k", "BN"), ("v", "BN"))}
    inputs = tiles if arch >= 90 else dict.fromkeys(tiles, f"*{dtype}")
    signature = inputs | {"o": f"*{dtype}", "scale": "fp32"} | dict.fromkeys(("batch", "tokens", "keys", "heads", "kv_B"), "i32")
    sizes = size | {"d": d, "D": padded_width(d), "PRECISION": "tf32", "ONE": keys == "short"}
    if quantized:
        signature |= {"o": "*fp8e4nv", "scale_1": "*fp32", "row_scales": "*fp32"}
    else:
        sizes |= {"scale_1": None, "row_scales": None}
    kernel = cross_kernel if arch >= 90 else cross_pointer_kernel
    return CompileSpec(f"cross {keys} {dtype} d{d}{' quantized' if quantized else ''}", kernel, signature, sizes,
                       selected.num_warps, selected.num_stages, (arch,),
                       unaligned=("batch", "tokens", "keys", "heads", "kv_B"), needs_wgmma=keys == "long")  # fmt: skip


COMPILE = [
    _compile_spec(arch, keys, dtype, d)
    for keys in ("short", "long")
    for dtype, d in (("bf16", 128), ("bf16", 48))
    for arch in (80, 90, 100)
] + [_compile_spec(arch, keys, "bf16", 128, quantized=True) for keys in ("short", "long") for arch in (90, 100)]
