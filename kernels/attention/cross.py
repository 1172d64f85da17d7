"""Attention of every query over a short list of keys, the same for all of them: text (512 keys) and audio (5 keys a frame).

Contract
    o[b,t,h] = sum_s softmax_s(q[b,t,h] . k[b,s,h] / sqrt(d)) v[b,s,h]          no mask, no bias
    q_BTHd, k_BSHd, v_BSHd -> o_BTHd, all of one floating dtype; softmax statistics in float32
    k and v may have batch 1 and then serve every batch row of q
    On a GPU heads and their width lie side by side (strides d and 1), d is a multiple of 8, at most 128; what is not contiguous is copied.
    cross_coded: the same o as e4m3 codes for the product that follows, codes_BTHd and scale_BT1, from a scale_1 with |v| <= 448 scale_1.
    o is a mean of values, so the scale that holds the values holds it too: made once a session, it spares a pass over whole rows.
    4 B T S H d flops. Text at 704x384: 3168 x 512 x 5120 -> 33 GFLOP a layer, bound by tensor cores;
    audio: 5 keys, bound by reading q and writing o (65 MB a layer in bf16).
    Codes halve what o costs and save the 49 MB of linear/quantise_rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from everface.kernels.attention.online_softmax import (
    attend_range,
    attend_range_pointers,
    init_state,
    load_queries,
    load_tile,
    softmax_step,
    store_output,
)
from everface.kernels.fused.row_primitives import to_e4m3
from everface.kernels.launch import CompileSpec, Cost, Tiles, arch, jit, metadata, runs_triton, select_tile, tile, tl
from everface.kernels.linear.quantize_rows import writes_e4m3

ONCE = 16  # up to this many keys are one tile, held in registers: no loop, no running maximum

# --- reference


def cross_reference(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    """Plain torch; differentiable; also the CPU path."""
    batch = q_BTHd.shape[0]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BSHd, v_BSHd))
    return F.scaled_dot_product_attention(q, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)).transpose(1, 2)


def cross_quantized_reference(
    q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor, scale_1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Plain torch; also the CPU path."""
    o_BTHd = cross_reference(q_BTHd.float(), k_BSHd.float(), v_BSHd.float()) / scale_1
    return to_e4m3(o_BTHd), scale_1.expand(*q_BTHd.shape[:2], 1).contiguous()


# --- kernel


def cost(batch: int, tokens: int, keys: int, heads: int, d: int, kv_batch: int, itemsize: int) -> Cost:
    """Of one call: two products of every query with every key; q, o, k, v moved once."""
    return Cost(4 * batch * tokens * keys * heads * d, itemsize * heads * d * 2 * (batch * tokens + kv_batch * keys))


def _cost(a: dict[str, Any]) -> Cost:
    return cost(a["batch"], a["tokens"], a["keys"], a["heads"], a["d"], a["batch"] if a["kv_B"] else 1, a["o"].element_size())


@jit
def rescale(l, quantized, scales, first, tokens, row, BM: tl.constexpr):
    """The sums of weights times the scale of o's codes, so that dividing by them gives codes; the first head notes it for every row."""
    if quantized is not None:
        scale = tl.load(quantized)
        l = l * scale
        t = first + tl.arange(0, BM)
        tl.store(scales + row + t, tl.zeros([BM], tl.float32) + scale, mask=(t < tokens) & (tl.program_id(1) == 0))
    return l


@jit(launch_metadata=metadata("cross", _cost))
def cross_kernel(q, k, v, o, quantized, scales, batch, tokens, keys, heads, kv_B, scale, d: tl.constexpr, D: tl.constexpr,
                 BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, ONE: tl.constexpr):  # fmt: skip
    """One program: BM queries of one head and batch row over all keys. ONE: they are a single tile, and the softmax is plain.
    q, k and v are descriptors [rows, heads * d]; batch row b of k and v begins at row b * kv_B. With a scale `coded` o is in codes."""
    first, column, b = tl.program_id(0) * BM, tl.program_id(1) * d, tl.program_id(2)
    q_MD = load_queries(q, b * tokens + first, column, d, D)
    acc, l, m = init_state(BM, D)
    if ONE:
        k_SD, v_SD = k.load([b * kv_B, column]), v.load([b * kv_B, column])
        acc, l, m = softmax_step(acc, l, m, q_MD, k_SD.T, v_SD, tl.arange(0, BN) < keys, scale, PRECISION)
    else:
        acc, l, m = attend_range(acc, l, m, q_MD, k, v, b * kv_B, column, keys, scale, BN, PRECISION)
    l = rescale(l, quantized, scales, first, tokens, b * tokens, BM)
    store_output(acc, l, o, first, tokens, b * tokens, column, heads * d, d, D, BM)


@jit(launch_metadata=metadata("cross", _cost))
def cross_pointer_kernel(q, k, v, o, quantized, scales, batch, tokens, keys, heads, kv_B, scale, d: tl.constexpr, D: tl.constexpr,
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
    l = rescale(l, quantized, scales, first, tokens, b * tokens, BM)
    store_output(acc, l, o, first, tokens, b * tokens, column, stride, d, D, BM)


# --- tiles: (keys, bytes an element, padded width). Argued on paper and from the compile report, not measured: no GPU was at hand.
# Short: 5 keys, 10 flops a byte of q and o: memory. 64 queries are 16 KiB in and out a program, 4 warps, several programs an SM.
# Long: 512 keys, K and V of a head (256 KiB) stay in L2 for its 25 tiles; 128 queries give 128 flops a byte of that.
# Above 100 registers of accumulator and scores a thread 128 x 128 would need 8 warps with nothing left to overlap: BN = 64.
# 80 serves every chip with 99 KiB, and the interpreter; its kernels take pointers.

TILES: Tiles = {
    80: {
        **{("short", size, D): tile(4, 1, BM=64, BN=16) for size in (2, 4) for D in (64, 128)},
        **{("long", 2, D): tile(8, 2, BM=128, BN=64) for D in (64, 128)},
        **{("long", 4, D): tile(4, 1, BM=64, BN=32) for D in (64, 128)},
    },
    90: {
        ("long", 2, 64): tile(8, 3, BM=128, BN=64),
        ("long", 2, 128): tile(8, 3, BM=128, BN=64),
    },
}

# --- op


def padded_width(d: int) -> int:
    """The width a kernel works at."""
    if d > 128:
        raise ValueError(f"heads of {d} are wider than the 128 these kernels hold")
    return 64 if d <= 64 else 128


def precision(dtype: torch.dtype) -> str:
    """Of tl.dot: float32 operands go through the matrix units as three products of tf32, which loses nothing that counts."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def runs_attention(*tensors: torch.Tensor) -> bool:
    """Whether the attention kernels run on these: where kernels run, on two bytes an element; exact float32 is torch's."""
    return runs_triton(*tensors) and tensors[0].element_size() == 2


def uses_descriptors(device: torch.device) -> bool:
    """Descriptors from sm_90 on, and under the interpreter. Before it they are no hardware: the loop loads late and spills 4 KB a thread,
    so the kernels there take pointers."""
    return device.type != "cuda" or arch(device) >= 90


def softmax_scale(d: int) -> float:
    """log2(e) / sqrt(d)."""
    return 1.4426950408889634 / d**0.5


def descriptor(x: torch.Tensor, rows: int, BN: int, D: int) -> Any:
    """The first `rows` rows of x [..., heads, d], seen as [rows, heads * d], read in tiles [BN, D]; what lies outside reads as zero.
    Heads and their width must lie side by side; leading dimensions, if any, must fold into one."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    heads, d = x.shape[-2:]
    if x.stride(-1) != 1 or (heads > 1 and x.stride(-2) != d):
        raise ValueError(f"heads and their width must lie side by side, strides are {x.stride()}")
    if x.data_ptr() % 16 or x.stride(-3) * x.element_size() % 16 or d * x.element_size() % 16:
        raise ValueError(f"rows and heads must begin at multiples of 16 bytes: strides {x.stride()}, {x.element_size()} bytes each")
    return TensorDescriptor(x, [rows, heads * d], [x.stride(-3), 1], [BN, D])


def launch_cross(
    q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor, use_descriptors: bool | None = None
) -> torch.Tensor:  # fmt: skip
    """The kernel, on a GPU or under the interpreter; `described` None is by_descriptor's choice."""
    o_BTHd = torch.empty_like(q_BTHd, memory_format=torch.contiguous_format)
    _launch(q_BTHd, k_BSHd, v_BSHd, o_BTHd, None, None, use_descriptors)
    return o_BTHd


def launch_cross_quantized(
    q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor, scale_1: torch.Tensor, use_descriptors: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The same, for codes and their scales."""
    quantized_BTHd = torch.empty(q_BTHd.shape, dtype=torch.float8_e4m3fn, device=q_BTHd.device)
    scale_BT1 = torch.empty((*q_BTHd.shape[:2], 1), dtype=torch.float32, device=q_BTHd.device)
    _launch(q_BTHd, k_BSHd, v_BSHd, quantized_BTHd, scale_1, scale_BT1, use_descriptors)
    return quantized_BTHd, scale_BT1


def _launch(
    q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor, o_BTHd: torch.Tensor, scale_1: torch.Tensor | None,
    scale_BT1: torch.Tensor | None, use_descriptors: bool | None,
) -> None:  # fmt: skip
    (batch, tokens, heads, d), (kv_batch, keys) = q_BTHd.shape, k_BSHd.shape[:2]
    q, k, v = q_BTHd.contiguous(), k_BSHd.contiguous(), v_BSHd.contiguous()
    one, D = keys <= ONCE, padded_width(d)
    options = select_tile("cross", TILES, q.device, ("short" if one else "long", q.element_size(), D)).options()
    inputs, kernel = (q, k, v), cross_pointer_kernel
    if uses_descriptors(q.device) if use_descriptors is None else use_descriptors:
        inputs, kernel = (
            descriptor(q, batch * tokens, options["BM"], D), *(descriptor(x, kv_batch * keys, options["BN"], D) for x in (k, v))
        ), cross_kernel  # fmt: skip
    kernel[(-(-tokens // options["BM"]), heads, batch)](
        *inputs, o_BTHd, scale_1, scale_BT1, batch, tokens, keys, heads, keys if kv_batch > 1 else 0, softmax_scale(d),
        d=d, D=D, PRECISION=precision(q.dtype), ONE=one, **options,
    )  # fmt: skip


@torch.library.custom_op("everface::cross", mutates_args=(), device_types="cuda")
def cross_op(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    return launch_cross(q_BTHd, k_BSHd, v_BSHd)


@cross_op.register_fake
def _(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    return q_BTHd.new_empty(q_BTHd.shape)


def cross(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    """The op. Returns o_BTHd."""
    if runs_attention(q_BTHd, k_BSHd, v_BSHd):
        return cross_op(q_BTHd, k_BSHd, v_BSHd)
    return cross_reference(q_BTHd, k_BSHd, v_BSHd)


@torch.library.custom_op("everface::cross_quantized", mutates_args=(), device_types="cuda")
def cross_quantized_op(
    q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor, scale_1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return launch_cross_quantized(q_BTHd, k_BSHd, v_BSHd, scale_1)


@cross_quantized_op.register_fake
def _(
    q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor, scale_1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return q_BTHd.new_empty(q_BTHd.shape, dtype=torch.float8_e4m3fn), scale_1.new_empty((*q_BTHd.shape[:2], 1))


def cross_quantized(
    q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor, scale_1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op that ends in codes. Returns (codes_BTHd, scale_BT1)."""
    if runs_attention(q_BTHd, k_BSHd, v_BSHd) and writes_e4m3(q_BTHd):
        return cross_quantized_op(q_BTHd, k_BSHd, v_BSHd, scale_1)
    return cross_quantized_reference(q_BTHd, k_BSHd, v_BSHd, scale_1)


# --- what CI compiles


def _compile_spec(chip: int, keys: str, dtype: str, d: int, quantized: bool = False) -> CompileSpec:
    chosen = select_tile("cross", TILES, chip, (keys, 2, padded_width(d)))
    size = dict(chosen.sizes)
    tiles = {name: f"tensordesc<{dtype}[{size[rows]}, {padded_width(d)}]>" for name, rows in (("q", "BM"), ("k", "BN"), ("v", "BN"))}
    inputs = tiles if chip >= 90 else dict.fromkeys(tiles, f"*{dtype}")
    signature = inputs | {"o": f"*{dtype}", "scale": "fp32"} | dict.fromkeys(("batch", "tokens", "keys", "heads", "kv_B"), "i32")
    sizes = size | {"d": d, "D": padded_width(d), "PRECISION": "tf32", "ONE": keys == "short"}
    if quantized:
        signature |= {"o": "*fp8e4nv", "quantized": "*fp32", "scales": "*fp32"}
    else:
        sizes |= {"quantized": None, "scales": None}
    kernel = cross_kernel if chip >= 90 else cross_pointer_kernel
    return CompileSpec(f"cross {keys} {dtype} d{d}{' quantized' if quantized else ''}", kernel, signature, sizes, chosen.num_warps, chosen.num_stages, (chip,),
                 unaligned=("batch", "tokens", "keys", "heads", "kv_B"), needs_wgmma=keys == "long")  # fmt: skip


COMPILE = [
    _compile_spec(chip, keys, dtype, d)
    for keys in ("short", "long")
    for dtype, d in (("bf16", 128), ("bf16", 48))
    for chip in (80, 90, 100)
] + [_compile_spec(chip, "long", "bf16", 128, quantized=True) for chip in (90, 100)]
