"""block_causal on sm_90, scheduled by hand in Gluon: GEMMs overlap the softmax, which `tl.dot` cannot express.

Contract
    launch_hopper, bfloat16: arguments and result of block_causal.launch_block_causal.
    launch_hopper_fp8: o_THd (bfloat16) = v_scale_H * softmax(qk_scale_H * q . k[:used]^T / sqrt(d)) v[:used]
    q_THd, k_NHd in e4m3; vT_HdN in e4m3 with keys side by side, rows (pitch) at multiples of 16 keys;
    qk_scale_H, v_scale_H float32 and positive. Probabilities are quantized as 256 p, sums are float32.
    d is 128. Slots beyond `used` may hold anything, NaN included.
Schedule
    A program is three parts: one warp loads, two warpgroups each attend with 64 of the tile's 128 queries.
        load    for every tile of keys: wait until its slot is free, TMA into it
        attend  O *= shrink, P(j-1) quantized; S(j) = Q K(j)^T and O += P(j-1) V(j-1) issued; wait for S(j); softmax; wait for O
    A slot has a `full` barrier (one arrival and the bytes of its copy) and an `empty` one (an arrival of each warpgroup). The i-th use of
    slot i % STAGES waits for the parity of i // STAGES; a wait for `empty` takes the other parity, so the first use does not wait.
    Programs are persistent and counts run on over tiles: the next tile's keys arrive while this one's output is written.
Order of keys (REORDER, in e4m3)
    Of 16 columns of S a thread holds 2q, 2q+1 and 8+2q, 8+2q+1, q being its place among four; as an operand in e4m3 it must hold 4q to 4q+3
    of P. So TMA brings key 4q + 2i + e of every 16 into row 8i + 2q + e, and P needs no exchange between threads. Groups of 16 keys are
    read whole, so all of the last must be slots: where it is not, keys are read in order, and threads exchange.
Cost
    That of block_causal; registers, shared memory and times on an H200 are in docs/tuning.md.
"""

# Gluon compiles the source of a kernel: its constexpr values are plain numbers only there.
# pyright: reportAssignmentType=false, reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everface.kernels.attention.block_causal import cost
from everface.kernels.attention.gluon import (
    UNAVAILABLE,
    fence_async_shared,
    gl,
    jit,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from everface.kernels.attention.operands import check_used, softmax_scale
from everface.kernels.launch import CompileSpec, Cost, Tiles, metadata, multiprocessors, select_tile, tile

D = 128  # the only width of a head

# --- kernel


@jit()
def fetch(keys, j, column, slots, full, empty, i, ORDER: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr):
    """Tile j of keys, or of values, into its slot, as the i-th of all. ORDER: keys are "rows", "columns", or rows in "groups" of 16."""
    stage, phase = i % STAGES, i // STAGES & 1
    mbarrier.wait(empty.index(stage), phase ^ 1)
    mbarrier.expect(full.index(stage), keys.block_type.nbytes)
    if ORDER == "groups":
        at = [j * (BN // 16), 0, 0, 0, column]
    elif ORDER == "columns":
        at = [column, j * BN]
    else:
        at = [j * BN, column]
    tma.async_copy_global_to_shared(keys, at, full.index(stage), slots.index(stage))


@jit()
def load(q, k, v, slots, full, empty, extents, D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
         FP8: gl.constexpr, REORDER: gl.constexpr):  # fmt: skip
    """The part of one warp."""
    q_slots, k_slots, v_slots = slots
    q_full, k_full, v_full = full
    q_empty, k_empty, v_empty = empty
    tokens, used, heads = extents
    if REORDER:
        k_slots = k_slots._reinterpret(k_slots.dtype, [STAGES, BN // 16, 2, 4, 2, D], k.layout)
    tiles, n = gl.cdiv(tokens, BM), gl.cdiv(used, BN)
    i = 0  # tiles of keys so far
    query_tile = 0  # tiles of queries so far
    for tile_id in range(gl.program_id(0), tiles * heads, gl.num_programs(0)):
        first, column = tile_id % tiles * BM, tile_id // tiles * D
        for half in gl.static_range(2):
            mbarrier.wait(q_empty.index(half), query_tile & 1 ^ 1)
            mbarrier.expect(q_full.index(half), q.block_type.nbytes)
            tma.async_copy_global_to_shared(q, [first + half * (BM // 2), column], q_full.index(half), q_slots.index(half))
        query_tile += 1  # noqa: SIM113  Triton has no enumerate
        for j in range(n):
            fetch(k, j, column, k_slots, k_full, k_empty, i, "groups" if REORDER else "rows", BN, STAGES)
            fetch(v, j, column, v_slots, v_full, v_empty, i, "columns" if FP8 else "rows", BN, STAGES)
            i += 1


@jit()
def lanes(x, SUM: gl.constexpr, CHAINS: gl.constexpr):
    """The sums, or the maxima, over the columns that one thread holds of a row: [rows, columns] to [rows, 8], two of them a thread. A single
    chain of 31 dependent instructions would wait four clocks for each; CHAINS run side by side."""
    parts = gl.reshape(x, [x.shape[0], CHAINS, x.shape[1] // CHAINS // 8, 8])
    return gl.sum(gl.sum(parts, 2), 1) if SUM else gl.max(gl.max(parts, 2), 1)


@jit()
def operand(p, dtype: gl.constexpr, REORDER: gl.constexpr, layout: gl.constexpr):
    """P quantized, its columns in the order of keys, in the layout in which wgmma reads it from registers."""
    p = p.to(dtype)
    if REORDER:
        groups = gl.permute(gl.reshape(p, [p.shape[0], p.shape[1] // 16, 2, 4, 2]), (0, 1, 3, 2, 4))
        p = gl.reshape(groups, [p.shape[0], p.shape[1]])
    return gl.convert_layout(p, layout)


@jit()
def softmax_step(s, m, left, scale, BN: gl.constexpr, LIFT: gl.constexpr, REORDER: gl.constexpr, CHAINS: gl.constexpr, layout: gl.constexpr):
    """The softmax's step over scores s of which the first `left` keys count: p = 2^(s scale - m' + LIFT), its sums by `lanes`, m', 2^(m - m').
    The mask goes through shared memory: as registers it would be 32 numbers of columns, held through the loop, and spill."""
    if left < BN:
        key = gl.arange(0, BN, gl.BlockedLayout([1], [32], [4], [0]))
        if REORDER:
            key = key // 16 * 16 + key % 8 // 2 * 4 + key % 16 // 8 * 2 + key % 2
        most = gl.where(key < left, float("inf"), float("-inf"))
        s = gl.minimum(s, gl.convert_layout(most, gl.SliceLayout(0, layout))[None, :])  # of NaN and -inf it is -inf
    new_m = gl.maximum(m, gl.convert_layout(gl.max(lanes(s, False, CHAINS), 1), gl.SliceLayout(1, layout)) * scale)
    p = gl.exp2(s * scale - (new_m - LIFT)[:, None])
    return p, lanes(p, True, CHAINS), new_m, gl.exp2(m - new_m)


@jit()
def attend(half: gl.constexpr, o, qk_scale, v_scale, scale, slots, full, empty, extents, D: gl.constexpr, BM: gl.constexpr,
           BN: gl.constexpr, STAGES: gl.constexpr, FP8: gl.constexpr, REORDER: gl.constexpr, CHAINS: gl.constexpr):  # fmt: skip
    """The part of one warpgroup: queries half * BM / 2 .. of every tile."""
    q_slots, k_slots, v_slots = slots
    q_full, k_full, v_full = full
    q_empty, k_empty, v_empty = empty
    tokens, used, heads = extents
    ROWS: gl.constexpr = BM // 2
    DEPTH: gl.constexpr = 32 if FP8 else 16  # of one wgmma, 32 bytes
    LIFT: gl.constexpr = 8.0 if FP8 else 0.0  # e4m3 holds p as 256 p: fewer fall among its subnormals, 256 is below its 448
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, DEPTH])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, DEPTH])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 4 if FP8 else 2)
    s_row: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_row: gl.constexpr = gl.SliceLayout(1, o_layout)
    V_ORDER: gl.constexpr = (1, 0) if FP8 else (0, 1)
    tiles, n = gl.cdiv(tokens, BM), gl.cdiv(used, BN)
    blank = gl.zeros([ROWS, BN], gl.float32, s_layout)
    i = 0
    query_tile = 0
    for tile_id in range(gl.program_id(0), tiles * heads, gl.num_programs(0)):
        first, head = tile_id % tiles * BM + half * ROWS, tile_id // tiles
        weight = scale
        if FP8:
            weight = scale * gl.load(qk_scale + head)
        acc = gl.zeros([ROWS, D], gl.float32, o_layout)
        m = gl.full([ROWS], float("-inf"), gl.float32, s_row)
        mbarrier.wait(q_full.index(half), query_tile & 1)
        q = q_slots.index(half)
        stage, phase = i % STAGES, i // STAGES & 1
        mbarrier.wait(k_full.index(stage), phase)
        s = warpgroup_mma(q, k_slots.index(stage).permute((1, 0)), blank, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(stage))
        wide, l, m, shrink = softmax_step(s, m, used, weight, BN, LIFT, REORDER, CHAINS, s_layout)
        # In bfloat16 two values share a register, so P goes around the loop; e4m3 values would take a register each, so P is made where it is
        # used: before both GEMMs, not between them, where ptxas issues three quarters of S only after it.
        if not FP8:
            p = operand(wide, q_slots.dtype, REORDER, p_layout)
        mbarrier.wait(k_full.index((i + 1) % STAGES), (i + 1) // STAGES & 1, pred=n > 1)
        for j in range(1, n):
            before, before_phase = stage, phase
            i += 1
            stage, phase = i % STAGES, i // STAGES & 1
            if FP8:
                acc = acc * gl.convert_layout(shrink, o_row)[:, None]
                p = operand(wide, q_slots.dtype, REORDER, p_layout)
            s = warpgroup_mma(q, k_slots.index(stage).permute((1, 0)), blank, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(before), before_phase)
            acc = warpgroup_mma(p, v_slots.index(before).permute(V_ORDER), acc, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(k_empty.index(stage))
            wide, more, m, shrink = softmax_step(s, m, used - j * BN, weight, BN, LIFT, REORDER, CHAINS, s_layout)
            l = l * gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout))[:, None] + more
            # The next keys are awaited here, not where they are needed: without a branch between, ptxas moves the wait for O to before
            # the exponentials, and they overlap nothing. `wide` goes through that wait so that p keeps its registers until then.
            mbarrier.wait(k_full.index((i + 1) % STAGES), (i + 1) // STAGES & 1, pred=j + 1 < n)
            acc, wide = warpgroup_mma_wait(0, deps=[acc, wide])
            mbarrier.arrive(v_empty.index(before))
            if not FP8:
                acc = acc * gl.convert_layout(shrink, o_row)[:, None]
                p = operand(wide, q_slots.dtype, REORDER, p_layout)
        mbarrier.arrive(q_empty.index(half))
        if FP8:
            acc = acc * gl.convert_layout(shrink, o_row)[:, None]
            p = operand(wide, q_slots.dtype, REORDER, p_layout)
        mbarrier.wait(v_full.index(stage), phase)
        acc = warpgroup_mma(p, v_slots.index(stage).permute(V_ORDER), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(stage))
        i += 1
        query_tile += 1  # noqa: SIM113  counted by hand: enumerate is not in the language of kernels
        share = gl.convert_layout(1.0 / gl.sum(l, 1), o_row)
        if FP8:
            share = share * gl.load(v_scale + head)
        acc = acc * share[:, None]
        t = first + gl.arange(0, ROWS, o_row)
        at = (t.to(gl.int64) * heads + head)[:, None] * D + gl.arange(0, D, gl.SliceLayout(0, o_layout))[None, :]
        gl.store(o + at, acc.to(gl.bfloat16), mask=(t < tokens)[:, None])


def _cost(a: dict[str, Any]) -> Cost:
    return cost(a["tokens"], a["used"], a["heads"], D, 1 if a["FP8"] else 2)


@jit(launch_metadata=metadata("block_causal_hopper", _cost), do_not_specialize=("tokens", "used", "heads"))
def block_causal_hopper_kernel(q, k, v, qk_scale, v_scale, o, tokens, used, heads, scale, D: gl.constexpr, BM: gl.constexpr,
                               BN: gl.constexpr, STAGES: gl.constexpr, FP8: gl.constexpr, REORDER: gl.constexpr, CHAINS: gl.constexpr):  # fmt: skip
    """q, k and v are descriptors with the layouts of their slots; qk_scale and v_scale are None unless FP8."""
    bar: gl.constexpr = mbarrier.MBarrierLayout()
    q_slots = gl.allocate_shared_memory(q.dtype, [2, BM // 2, D], q.layout)
    k_slots = gl.allocate_shared_memory(q.dtype, [STAGES, BN, D], q.layout)
    v_slots = gl.allocate_shared_memory(q.dtype, [STAGES, D, BN] if FP8 else [STAGES, BN, D], v.layout)
    q_full, q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], bar), gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    k_full, k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar), gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    v_full, v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar), gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    for half in gl.static_range(2):  # a warpgroup's queries are its own
        mbarrier.init(q_full.index(half), count=1)
        mbarrier.init(q_empty.index(half), count=1)
    for stage in gl.static_range(STAGES):  # keys and values are read by both
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_empty.index(stage), count=2)
    fence_async_shared()  # the copies' engine must see the barriers
    slots, full, empty = (q_slots, k_slots, v_slots), (q_full, k_full, v_full), (q_empty, k_empty, v_empty)
    extents = (tokens, used, heads)
    gl.warp_specialize(
        [
            (attend, (0, o, qk_scale, v_scale, scale, slots, full, empty, extents, D, BM, BN, STAGES, FP8, REORDER, CHAINS)),
            (attend, (1, o, qk_scale, v_scale, scale, slots, full, empty, extents, D, BM, BN, STAGES, FP8, REORDER, CHAINS)),
            (load, (q, k, v, slots, full, empty, extents, D, BM, BN, STAGES, FP8, REORDER)),
        ],
        [4, 1],
        [240, 24],
    )


# --- tiles: bytes an element. From arithmetic and the compile report; CHAINS measured on an H200 (docs/tuning.md).
# 4 warps are the first warpgroup; the second and the loader join them. Shared memory: 32 + 3 x 64 KiB in bfloat16, 16 + 4 x 32 in e4m3.
# num_stages is Triton's own pipeline, of which this kernel has none.

TILES: Tiles = {90: {2: tile(4, 1, BM=128, BN=128, STAGES=3, CHAINS=4), 1: tile(4, 1, BM=128, BN=128, STAGES=4, CHAINS=8)}}

# --- launch


def _layout(itemsize: int, rank: int = 2) -> Any:
    """Of a tile in shared memory: rows of 128 bytes, swizzled, as wgmma reads them and TMA writes them."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8 * itemsize, rank=rank)


def _descriptor(x: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], block: tuple[int, ...]) -> Any:
    """x as rows, strides[:-1] apart, of which shape[-1] elements are there, read in blocks; elements outside read as zero."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    if x.data_ptr() % 16 or any(stride * x.element_size() % 16 for stride in strides[:-1]):
        raise ValueError(f"rows must begin at multiples of 16 bytes: they are {strides[:-1]} apart, {x.element_size()} bytes each")
    return TensorDescriptor(x, list(shape), list(strides), list(block), _layout(x.element_size(), len(shape)))


def _by_rows(x_NHd: Tensor, rows: int, BN: int) -> Any:
    """The first `rows` of [N, heads, d] as [rows, heads * d]."""
    heads, d = x_NHd.shape[1:]
    if x_NHd.stride(-1) != 1 or (heads > 1 and x_NHd.stride(1) != d):
        raise ValueError(f"heads and their width must be side by side, strides are {x_NHd.stride()}")
    return _descriptor(x_NHd, (rows, heads * d), (x_NHd.stride(0), 1), (BN, d))


def _by_groups(x_NHd: Tensor, rows: int, BN: int) -> Any:
    """The first `rows`, rounded up to groups of 16, as [group, i, q, e, heads * d]: the order of keys above."""
    (heads, d), pitch = x_NHd.shape[1:], x_NHd.stride(0)
    shape, strides = (-(-rows // 16), 2, 4, 2, heads * d), (16 * pitch, 2 * pitch, 4 * pitch, pitch, 1)
    return _descriptor(x_NHd, shape, strides, (BN // 16, 2, 4, 2, d))


def _by_columns(x_HdN: Tensor, keys: int, BN: int) -> Any:
    """The first `keys` of [heads, d, N] as [heads * d, keys]."""
    heads, d = x_HdN.shape[:2]
    if x_HdN.stride(-1) != 1 or (heads > 1 and x_HdN.stride(0) != d * x_HdN.stride(1)):
        raise ValueError(f"keys must be side by side and heads end to end, strides are {x_HdN.stride()}")
    return _descriptor(x_HdN, (heads * d, keys), (x_HdN.stride(1), 1), (d, BN))


def _launch(q_THd: Tensor, k_NHd: Tensor, v: Tensor, used: int, scales: tuple[Any, Any]) -> Tensor:
    tokens, heads, d = q_THd.shape
    if d != D:
        raise ValueError(f"heads of {d}: this kernel is for {D}")
    check_used(used, len(k_NHd))
    o_THd = torch.empty((tokens, heads, d), dtype=torch.bfloat16, device=q_THd.device)
    options = select_tile("block_causal_hopper", TILES, q_THd.device, q_THd.element_size()).options()
    BM, BN, fp8 = options["BM"], options["BN"], q_THd.element_size() == 1
    tiles, reorder = -(-tokens // BM) * heads, fp8 and -(-used // 16) * 16 <= len(k_NHd)
    k, v = (_by_groups if reorder else _by_rows)(k_NHd, used, BN), (_by_columns if fp8 else _by_rows)(v, used, BN)
    block_causal_hopper_kernel[(min(tiles, multiprocessors(q_THd.device)),)](
        _by_rows(q_THd, tokens, BM // 2), k, v, *scales, o_THd, tokens, used, heads, softmax_scale(d), D=D, FP8=fp8, REORDER=reorder, **options
    )
    return o_THd


def launch_hopper(q_THd: Tensor, k_NHd: Tensor, v_NHd: Tensor, used: int) -> Tensor:
    """In bfloat16, on a GPU of sm_90. Returns o_THd."""
    if q_THd.dtype != torch.bfloat16:
        raise ValueError(f"{q_THd.dtype}: this kernel is for torch.bfloat16")
    return _launch(q_THd, k_NHd, v_NHd, used, (None, None))


def launch_hopper_fp8(q_THd: Tensor, k_NHd: Tensor, vT_HdN: Tensor, used: int, qk_scale_H: Tensor, v_scale_H: Tensor) -> Tensor:
    """In e4m3, on a GPU of sm_90. Returns o_THd in bfloat16."""
    if q_THd.dtype != torch.float8_e4m3fn:
        raise ValueError(f"{q_THd.dtype}: this kernel is for torch.float8_e4m3fn")
    return _launch(q_THd, k_NHd, vT_HdN, used, (qk_scale_H, v_scale_H))


# --- what CI compiles


def _compile_spec(itemsize: int, reorder: bool = False) -> CompileSpec:
    selected = TILES[90][itemsize]
    size, fp8 = dict(selected.sizes), itemsize == 1
    BM, BN = size["BM"], size["BN"]

    def describe(*block: int) -> str:
        return f"tensordesc<{'fp8e4nv' if fp8 else 'bf16'}{list(block)},{_layout(itemsize, len(block))!r}>"

    keys, values = describe(BN // 16, 2, 4, 2, D) if reorder else describe(BN, D), describe(D, BN) if fp8 else describe(BN, D)
    signature = {"q": describe(BM // 2, D), "k": keys, "v": values}
    signature |= {"o": "*bf16", "scale": "fp32"} | dict.fromkeys(("tokens", "used", "heads"), "i32")
    scales = ("qk_scale", "v_scale")
    signature |= dict.fromkeys(scales, "*fp32") if fp8 else {}
    sizes = size | {"D": D, "FP8": fp8, "REORDER": reorder} | ({} if fp8 else dict.fromkeys(scales))
    name = f"block_causal_hopper {('e4m3' if reorder else 'e4m3 in order') if fp8 else 'bf16'}"
    return CompileSpec(name, block_causal_hopper_kernel, signature, sizes, selected.num_warps, selected.num_stages, (90,),
                       unaligned=("tokens", "used", "heads"), needs_wgmma=True)  # fmt: skip


COMPILE = [] if UNAVAILABLE else [_compile_spec(2), _compile_spec(1), _compile_spec(1, reorder=True)]
