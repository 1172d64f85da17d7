"""The loop of the attention kernels: one tile of queries over a range of keys, with a running softmax.

    s = q k^T * scale;  m' = max(m, max s);  p = 2^(s - m' + LIFT);  l = l 2^(m - m') + sum p;  acc = acc 2^(m - m') + p v

`scale` is log2(e) / sqrt(d), so the exponential is the GPU's own base-2 one. All state is float32; p is rounded to the dtype of v for its
GEMM. LIFT is for e4m3 only: it keeps small p out of the subnormals, and cancels in acc / l.
Source: Milakov & Gimelshein 2018 (arXiv 1805.02867); FlashAttention (arXiv 2205.14135).
"""

# Triton compiles the source of a kernel: tl.range is a loop only there, and defaults of constexpr arguments are plain values.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

from everface.kernels.launch import jit, tl


@jit
def init_state(BM: tl.constexpr, D: tl.constexpr):
    """acc, l, m before the first key."""
    return tl.zeros([BM, D], tl.float32), tl.zeros([BM], tl.float32), tl.full([BM], float("-inf"), tl.float32)


@jit
def softmax_step(acc, l, m, q, k, v, valid, scale, PRECISION: tl.constexpr, LIFT: tl.constexpr = None):
    """Add one tile of keys k_DS and values v_SD; columns that are not `valid` (None: all are) weigh nothing. At least one must be."""
    s = tl.dot(q, k, input_precision=PRECISION)
    if valid is not None:
        s = tl.where(valid[None, :], s, float("-inf"))
    new_m = tl.maximum(m, tl.max(s, 1) * scale)
    if LIFT is not None:
        p = tl.exp2(s * scale - (new_m - LIFT)[:, None])
    else:
        p = tl.exp2(s * scale - new_m[:, None])
    shrink = tl.exp2(m - new_m)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, l * shrink + tl.sum(p, 1), new_m


@jit
def attend_range(acc, l, m, q, keys, values, row, column, count, scale, BN: tl.constexpr, PRECISION: tl.constexpr,
                 TRANSPOSED: tl.constexpr = False, LIFT: tl.constexpr = None):  # fmt: skip
    """Add `count` keys and values from `row` on: tiles [BN, D] of two-dimensional descriptors, at `column`. Whole tiles come first, without
    a mask, then the rest with one. TRANSPOSED: values are [channels, slots]. Elements that a descriptor reads beside the range are
    zeros or a neighbor's, and weigh nothing."""
    whole = count // BN * BN
    for first in tl.range(0, whole, BN):
        k = keys.load([row + first, column])
        v = values.load([column, row + first]).T if TRANSPOSED else values.load([row + first, column])
        acc, l, m = softmax_step(acc, l, m, q, k.T, v, None, scale, PRECISION, LIFT)
    if whole < count:
        k = keys.load([row + whole, column])
        v = values.load([column, row + whole]).T if TRANSPOSED else values.load([row + whole, column])
        acc, l, m = softmax_step(acc, l, m, q, k.T, v, tl.arange(0, BN) < count - whole, scale, PRECISION, LIFT)
    return acc, l, m


@jit
def attend_from(acc, l, m, q, k, v, row, column, count, scale, BN: tl.constexpr, LIFT: tl.constexpr):
    """attend_range where the range may begin anywhere: tiles of V begin at multiples of 16 bytes, so the first may begin before the range, and
    every tile is masked. One body of the loop keeps the registers."""
    lead = row % 16
    for first in tl.range(0, tl.where(count > 0, lead + count, 0), BN):
        k_ND, v_DN = k.load([row - lead + first, column]), v.load([column, row - lead + first])
        slot = first - lead + tl.arange(0, BN)
        acc, l, m = softmax_step(acc, l, m, q, k_ND.T, v_DN.T, (slot >= 0) & (slot < count), scale, "tf32", LIFT)
    return acc, l, m


@jit
def load_tile(x, row, column, stride, left, d: tl.constexpr, D: tl.constexpr, BN: tl.constexpr):
    """Rows row.. of x [rows, stride], channels column.., as a tile [BN, D] by plain loads, for GPUs without TMA. Channels beyond d read as
    zero, and so do rows from the `left`-th on."""
    r, c = tl.arange(0, BN)[:, None], tl.arange(0, D)[None, :]
    return tl.load(x + (row + r) * stride + column + c, mask=(r < left) & (c < d), other=0.0)


@jit
def attend_range_pointers(acc, l, m, q, keys, values, row, column, stride, count, scale, d: tl.constexpr, D: tl.constexpr,
                          BN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """attend_range by pointers to [rows, stride]: one loop in which every tile is masked."""
    for first in tl.range(0, count, BN):
        left = count - first
        k = load_tile(keys, row + first, column, stride, left, d, D, BN)
        v = load_tile(values, row + first, column, stride, left, d, D, BN)
        acc, l, m = softmax_step(acc, l, m, q, k.T, v, tl.arange(0, BN) < left, scale, PRECISION)
    return acc, l, m


@jit
def load_queries(q, row, column, d: tl.constexpr, D: tl.constexpr):
    """A tile of queries by descriptor; channels beyond d, which are the next head's, read as zero."""
    q_MD = q.load([row, column])
    if d < D:
        q_MD = tl.where(tl.arange(0, D)[None, :] < d, q_MD, tl.zeros_like(q_MD))
    return q_MD


@jit
def store_output(acc, l, o, first, tokens, row, column, stride, d: tl.constexpr, D: tl.constexpr, BM: tl.constexpr):
    """Divide by the sum and store rows first.. of `tokens`. o is a pointer, as a descriptor would write the next head's channels."""
    t, c = first + tl.arange(0, BM)[:, None], tl.arange(0, D)[None, :]
    at = (row + t).to(tl.int64) * stride + column + c
    tl.store(o + at, (acc / l[:, None]).to(o.dtype.element_ty), mask=(t < tokens) & (c < d))
