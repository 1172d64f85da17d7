"""KV slots: what is shared, what is reused, the limit, memory, and that nothing is kept of an opening that failed."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
import torch

from everface.core.errors import Unavailable
from everface.runtime.cache_pool import KVPool, KVShape

SHAPE = KVShape(layers=2, ring=24, sink=5, text=3, heads=3, width=8)
TALL = replace(SHAPE, kind="tall")
HUGE = KVShape(layers=40, ring=psutil.virtual_memory().total // 4000, sink=1, text=1, heads=40, width=128)


def pool(limit: int) -> KVPool:
    return KVPool(torch.bfloat16, "cpu", limit)


def test_steps_share_sink_and_text_but_no_ring() -> None:
    slot = pool(1).open(1, 0, SHAPE)
    first, second = slot.cache(0), pool(1).open(1, 0, SHAPE).cache(0)
    assert first.k_LNHd.shape == first.v_LNHd.shape == (2, 29, 3, 8) and first.k_LSHd.shape == first.v_LSHd.shape == (2, 24, 3, 8)
    assert first.sink == 5 and first.sink_k_LCHd.shape == first.sink_v_LCHd.shape == (2, 5, 3, 8) and slot.text[1].shape == (2, 3, 3, 8)
    assert first.sink_k_LCHd.data_ptr() != second.sink_k_LCHd.data_ptr()  # another pool
    one = pool(1)
    a, b = one.open(7, 0, SHAPE).cache(0), one.open(7, 2, SHAPE).cache(2)
    assert a.sink_k_LCHd is b.sink_k_LCHd and len(one) == 1
    assert len({t.data_ptr() for t in (a.k_LNHd, a.v_LNHd, b.k_LNHd, b.v_LNHd, a.sink_k_LCHd)}) == 5
    assert all(t.dtype == torch.bfloat16 and not t.any() for t in (a.k_LNHd, b.v_LNHd))


@pytest.mark.parametrize("codes", [None, torch.float8_e4m3fn])
def test_every_ring_has_the_sink_whenever_it_was_opened(codes: torch.dtype | None) -> None:
    """Two sessions in one slot, one after the other: a sink before and after a ring, refreshed, and gone with its session."""
    shape, one = replace(SHAPE, codes=codes), pool(1)
    for session in (1, 2):
        k, v = (torch.full((2, 5, 3, 8), float(n + session)).bfloat16() for n in (4, 8))
        slot = one.open(session, 0, shape)
        slot.prime(k, v.to(codes or v.dtype))
        one.open(session, 3, shape)
        for refreshed in (0, 1):
            for cache in (slot.cache(0), slot.cache(3)):
                assert torch.equal(cache.sink_k_LCHd, k) and torch.equal(cache.sink_v_LCHd.bfloat16(), v)
                assert not cache.k_LSHd.float().any() and not cache.v_LSHd.float().any()
                assert cache.sink_v_LCHd.data_ptr() == cache.v_LNHd.data_ptr()  # one range with the ring
            if not refreshed:
                k, v = k + 2, v + 2
                slot.prime(k, v.to(codes or v.dtype))
        for cache in (slot.cache(0), slot.cache(3)):
            cache.k_LSHd.fill_(float("nan"))
            cache.v_LSHd.fill_(float("nan"))
        one.close(session)


def test_rings_of_codes_take_half_and_hold_values_by_channel() -> None:
    """Whoever uses them sees [layers, slots, heads, width] either way."""
    shape = replace(SHAPE, ring=20, codes=torch.float8_e4m3fn)
    slot = pool(1).open(1, 0, shape)
    cache = slot.cache(0)
    assert [t.dtype.itemsize for t in (*slot.rings[0], slot.sink_k_LCHd, *slot.text)] == [1, 1, 2, 2, 2]
    assert cache.v_LNHd.shape == cache.k_LNHd.shape == (2, 25, 3, 8) and cache.sink_v_LCHd.shape == (2, 5, 3, 8)
    assert cache.k_LNHd.is_contiguous() and cache.v_LNHd.stride() == (3 * 8 * 32, 1, 8 * 32, 32)


def test_the_next_session_takes_over_what_was_given_back() -> None:
    one = pool(2)
    slot = one.open(1, 0, SHAPE)
    slot.kept["graph"] = "captured"
    one.close(1)
    one.close(1)
    assert len(one) == 0
    again = one.open(2, 0, SHAPE)
    assert again is slot and again.kept == {"graph": "captured"}
    assert one.open(3, 0, SHAPE) is not slot


def test_the_limit_counts_sessions_and_evicts_other_shapes() -> None:
    one = pool(2)
    first = one.open(1, 0, SHAPE)
    one.open(2, 0, SHAPE)
    with pytest.raises(Unavailable, match="all 2 sessions"):
        one.open(3, 0, SHAPE)
    one.close(1)
    assert one.open(3, 0, TALL) is not first  # room was made for another shape
    one.close(3)
    one.close(2)
    assert one.open(4, 0, SHAPE) is not first and len(one) == 1


def test_memory_short_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = pool(3)
    with pytest.raises(Unavailable, match="do not fit"):
        one.open(1, 0, HUGE)  # the sink fits, the ring does not
    assert len(one) == 0 and not one._waiting
    left = 2 * 2 * 29 * 3 * 8 * 2
    monkeypatch.setattr(one, "_free_bytes", lambda: 0 if one._waiting else left)
    one._waiting.append(pool(1).open(9, 0, TALL))
    one.open(2, 0, SHAPE)  # only the waiting slot stood in the way
    assert not one._waiting and len(one) == 1
    left = 0
    with pytest.raises(Unavailable):
        one.open(2, 1, SHAPE)  # the second step's ring: the first is let go with it
    assert len(one) == 0 and not one._waiting
