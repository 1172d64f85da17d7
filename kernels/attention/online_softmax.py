"""The loop that both attention kernels are made of: one tile of queries over one range of keys, softmax carried along.

    s = q k^T * scale;  m' = max(m, max s);  p = 2^(s - m');  l = l 2^(m - m') + sum p;  acc = acc 2^(m - m') + p v

`scale` is log2(e) / sqrt(d), so that the exponential is the chip's own base-2 one. All state is float32; p is rounded to the dtype
of v for its product. Ranges follow one another without a seam: the result does not depend on where one ends and the next begins.
Source: Milakov & Gimelshein 2018 (arXiv 1805.02867); FlashAttention (arXiv 2205.14135).
"""

from __future__ import annotations

from everface.kernels.launch import jit, tl


@jit
def start(BM: tl.constexpr, D: tl.constexpr):
    """acc, l, m before the first key."""
    return tl.zeros([BM, D], tl.float32), tl.zeros([BM], tl.float32), tl.full([BM], float("-inf"), tl.float32)


@jit
def fold(acc, l, m, q, k, v, seen, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One tile of keys k_DS, v_SD; columns that are not `seen` weigh nothing. At least one column must be seen."""
    s = tl.dot(q, k, input_precision=PRECISION)
    if MASKED:
        s = tl.where(seen[None, :], s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - top[:, None])
    shrink = tl.exp2(m - top)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, l * shrink + tl.sum(p, 1), top


@jit
def sweep(acc, l, m, q, k_ptr, v_ptr, count, stride, scale, d: tl.constexpr, D: tl.constexpr, BN: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """Fold `count` keys in, `stride` elements apart: whole tiles without a mask, then what is left with one."""
    s, c = tl.arange(0, BN), tl.arange(0, D)
    k_ptrs = k_ptr + s[None, :] * stride + c[:, None]
    v_ptrs = v_ptr + s[:, None] * stride + c[None, :]
    far = stride.to(tl.int64)
    whole = count // BN * BN
    for first in tl.range(0, whole, BN):
        at = first * far
        if d == D:
            k, v = tl.load(k_ptrs + at), tl.load(v_ptrs + at)
        else:
            k = tl.load(k_ptrs + at, mask=c[:, None] < d, other=0.0)
            v = tl.load(v_ptrs + at, mask=c[None, :] < d, other=0.0)
        acc, l, m = fold(acc, l, m, q, k, v, s < BN, scale, False, PRECISION)
    if whole < count:
        at = whole * far
        seen = s < count - whole
        k = tl.load(k_ptrs + at, mask=seen[None, :] & (c[:, None] < d), other=0.0)
        v = tl.load(v_ptrs + at, mask=seen[:, None] & (c[None, :] < d), other=0.0)
        acc, l, m = fold(acc, l, m, q, k, v, seen, scale, True, PRECISION)
    return acc, l, m
