"""The loop that both attention kernels are made of: one tile of queries over one range of keys, softmax carried along.

    s = q k^T * scale;  m' = max(m, max s);  p = 2^(s - m');  l = l 2^(m - m') + sum p;  acc = acc 2^(m - m') + p v

`scale` is log2(e) / sqrt(d), so that the exponential is the chip's own base-2 one. All state is float32; p is rounded to the dtype
of v for its product.
Source: Milakov & Gimelshein 2018 (arXiv 1805.02867); FlashAttention (arXiv 2205.14135).
"""

from __future__ import annotations

from everface.kernels.launch import jit, tl


@jit
def init_state(BM: tl.constexpr, D: tl.constexpr):
    """acc, l, m before the first key."""
    return tl.zeros([BM, D], tl.float32), tl.zeros([BM], tl.float32), tl.full([BM], float("-inf"), tl.float32)


@jit
def softmax_step(acc, l, m, q, k, v, seen, scale, PRECISION: tl.constexpr):
    """One tile of keys k_DS, v_SD; columns that are not `seen` (None: all are) weigh nothing. At least one must be."""
    s = tl.dot(q, k, input_precision=PRECISION)
    if seen is not None:
        s = tl.where(seen[None, :], s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - top[:, None])
    shrink = tl.exp2(m - top)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, l * shrink + tl.sum(p, 1), top


@jit
def attend_range(acc, l, m, q, keys, values, row, column, count, scale, BN: tl.constexpr, PRECISION: tl.constexpr):
    """Fold in `count` keys and values from `row` on: tiles [BN, D] of two-dimensional descriptors, at `column`. Whole tiles without a
    mask, then what is left with one. What a descriptor reads beside the range is zeros or a neighbour's, and weighs nothing."""
    whole = count // BN * BN
    for first in tl.range(0, whole, BN):  # type: ignore[reportGeneralTypeIssues]
        k, v = keys.load([row + first, column]), values.load([row + first, column])
        acc, l, m = softmax_step(acc, l, m, q, k.T, v, None, scale, PRECISION)
    if whole < count:
        k, v = keys.load([row + whole, column]), values.load([row + whole, column])
        acc, l, m = softmax_step(acc, l, m, q, k.T, v, tl.arange(0, BN) < count - whole, scale, PRECISION)
    return acc, l, m


@jit
def load_tile(x, row, column, stride, left, d: tl.constexpr, D: tl.constexpr, BN: tl.constexpr):
    """Rows row.. of x [rows, stride], channels column.., as a tile [BN, D] by plain loads, for chips whose descriptors are no hardware.
    Channels beyond d read as zero, and so do rows from the `left`-th on."""
    r, c = tl.arange(0, BN)[:, None], tl.arange(0, D)[None, :]
    return tl.load(x + (row + r) * stride + column + c, mask=(r < left) & (c < d), other=0.0)


@jit
def attend_range_pointers(acc, l, m, q, keys, values, row, column, stride, count, scale, d: tl.constexpr, D: tl.constexpr, BN: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """Fold in `count` keys and values from `row` on of [rows, stride], by pointers: one loop whose every tile may be ragged."""
    for first in tl.range(0, count, BN):  # type: ignore[reportGeneralTypeIssues]
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
    """Divide by the sum and store rows first.. of `tokens`; o is a pointer, as a descriptor would write the next head's channels."""
    t, c = first + tl.arange(0, BM)[:, None], tl.arange(0, D)[None, :]
    at = (row + t).to(tl.int64) * stride + column + c
    tl.store(o + at, (acc / l[:, None]).to(o.dtype.element_ty), mask=(t < tokens) & (c < d))
