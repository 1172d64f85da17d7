"""The KV caches of a session: what steps share, that every ring has the sink, and how 8-bit rings are laid out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everface.models.live_avatar.caches import KVLayout, SessionCaches, open_caches
from everface.runtime.cache_pool import CachePool

LAYOUT = KVLayout(layers=2, ring=24, sink=5, text=3, heads=3, width=8, dtype=torch.bfloat16)


def test_steps_share_sink_and_text_but_no_ring() -> None:
    caches = open_caches(CachePool("cpu", 1), 1, 0, LAYOUT)
    first, second = caches.cache(0), open_caches(CachePool("cpu", 1), 1, 0, LAYOUT).cache(0)
    assert first.k_LNHd.shape == first.v_LNHd.shape == (2, 29, 3, 8) and first.k_LSHd.shape == first.v_LSHd.shape == (2, 24, 3, 8)
    assert first.sink == 5 and first.sink_k_LCHd.shape == first.sink_v_LCHd.shape == (2, 5, 3, 8) and caches.text[1].shape == (2, 3, 3, 8)
    assert first.sink_k_LCHd.data_ptr() != second.sink_k_LCHd.data_ptr()  # another pool
    pool = CachePool("cpu", 1)
    a, b = open_caches(pool, 7, 0, LAYOUT).cache(0), open_caches(pool, 7, 2, LAYOUT).cache(2)
    assert a.sink_k_LCHd is b.sink_k_LCHd and len(pool) == 1
    assert len({t.data_ptr() for t in (a.k_LNHd, a.v_LNHd, b.k_LNHd, b.v_LNHd, a.sink_k_LCHd)}) == 5
    assert all(t.dtype == torch.bfloat16 and not t.any() for t in (a.k_LNHd, b.v_LNHd))


def set_sink(caches: SessionCaches, k_LCHd: torch.Tensor, v_LCHd: torch.Tensor) -> None:
    for layer, (k_CHd, v_CHd) in enumerate(zip(k_LCHd, v_LCHd, strict=True)):
        caches.set_sink(layer, k_CHd, v_CHd)


@pytest.mark.parametrize("quantized", [None, torch.float8_e4m3fn])
def test_every_ring_has_the_sink_whenever_it_was_opened(quantized: torch.dtype | None) -> None:
    """Two sessions in one slot, one after the other: a sink before and after a ring, refreshed, and gone with its session."""
    layout, pool = replace(LAYOUT, quantized=quantized), CachePool("cpu", 1)
    for session in (1, 2):
        k, v = (torch.full((2, 5, 3, 8), float(n + session)).bfloat16() for n in (4, 8))
        caches = open_caches(pool, session, 0, layout)
        set_sink(caches, k, v.to(quantized or v.dtype))
        open_caches(pool, session, 3, layout)
        for refreshed in (0, 1):
            for cache in (caches.cache(0), caches.cache(3)):
                assert torch.equal(cache.sink_k_LCHd, k) and torch.equal(cache.sink_v_LCHd.bfloat16(), v)
                assert not cache.k_LSHd.float().any() and not cache.v_LSHd.float().any()
                assert cache.sink_v_LCHd.data_ptr() == cache.v_LNHd.data_ptr()  # one range with the ring
            if not refreshed:
                k, v = k + 2, v + 2
                set_sink(caches, k, v.to(quantized or v.dtype))
        for cache in (caches.cache(0), caches.cache(3)):
            cache.k_LSHd.fill_(float("nan"))
            cache.v_LSHd.fill_(float("nan"))
        pool.close(session)


def test_quantized_rings_take_half_and_hold_values_by_channel() -> None:
    """Whoever uses them sees [layers, tokens, heads, width] either way."""
    caches = open_caches(CachePool("cpu", 1), 1, 0, replace(LAYOUT, ring=20, quantized=torch.float8_e4m3fn))
    cache = caches.cache(0)
    tensors = (cache.k_LNHd, cache.v_LNHd, caches.sink_k_LCHd, *caches.text)
    assert [t.dtype.itemsize for t in tensors] == [1, 1, 2, 2, 2]
    assert cache.v_LNHd.shape == cache.k_LNHd.shape == (2, 25, 3, 8) and cache.sink_v_LCHd.shape == (2, 5, 3, 8)
    assert cache.k_LNHd.is_contiguous() and cache.v_LNHd.stride() == (3 * 8 * 32, 1, 8 * 32, 32)
