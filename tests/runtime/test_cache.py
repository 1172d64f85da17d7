"""KV slots: what is shared, what is reused, the limit, memory, and that nothing is kept of an opening that failed."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
import torch

from everface.core.errors import Unavailable
from everface.runtime.cache import KVPool, KVShape

SHAPE = KVShape(layers=2, ring=24, sink=5, text=3, heads=3, width=8)
TALL = replace(SHAPE, kind="tall")
HUGE = KVShape(layers=40, ring=psutil.virtual_memory().total // 4000, sink=1, text=1, heads=40, width=128)


def pool(limit: int) -> KVPool:
    return KVPool(torch.bfloat16, "cpu", limit)


def test_steps_share_sink_and_text_but_no_ring() -> None:
    slot = pool(1).open(1, 0, SHAPE)
    first, second = slot.cache(0), pool(1).open(1, 0, SHAPE).cache(0)
    assert first.k_LSHd.shape == first.v_LSHd.shape == (2, 24, 3, 8)
    assert first.sink_k_LCHd.shape == (2, 5, 3, 8) and slot.text[1].shape == (2, 3, 3, 8)
    assert first.sink_k_LCHd.data_ptr() != second.sink_k_LCHd.data_ptr()  # another pool
    one = pool(1)
    a, b = one.open(7, 0, SHAPE).cache(0), one.open(7, 2, SHAPE).cache(2)
    assert a.sink_k_LCHd is b.sink_k_LCHd and a.sink_v_LCHd is b.sink_v_LCHd and len(one) == 1
    assert len({t.data_ptr() for t in (a.k_LSHd, a.v_LSHd, b.k_LSHd, b.v_LSHd, a.sink_k_LCHd, a.sink_v_LCHd)}) == 6
    assert all(t.dtype == torch.bfloat16 and not t.any() for t in (a.k_LSHd, b.v_LSHd, a.sink_v_LCHd))


def test_rings_of_codes_take_half_and_hold_values_by_channel() -> None:
    """Whoever uses them sees [layers, slots, heads, width] either way."""
    shape = replace(SHAPE, ring=20, codes=torch.float8_e4m3fn)
    slot = pool(1).open(1, 0, shape)
    cache = slot.cache(0)
    assert [t.dtype.itemsize for t in (*slot.rings[0], *slot.sink, *slot.text)] == [1, 1, 2, 1, 2, 2]
    assert cache.v_LSHd.shape == cache.k_LSHd.shape == (2, 20, 3, 8) and cache.sink_v_LCHd.shape == (2, 5, 3, 8)
    assert cache.k_LSHd.is_contiguous()
    for values, pitch in ((cache.v_LSHd, 32), (cache.sink_v_LCHd, 16)):
        assert values.stride() == (3 * 8 * pitch, 1, 8 * pitch, pitch)
    for ring in slot.rings[0]:
        ring.fill_(float("nan"))
    assert not any(t.float().any() for t in pool(1).open(2, 0, shape).rings[0])
    one = pool(1)
    for kept in one.open(3, 0, shape).rings[0]:
        kept.fill_(float("nan"))
    one.close(3)
    assert all((t.float() == 0).all() for t in one.open(4, 0, shape).rings[0])


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
    left = 2 * 2 * 24 * 3 * 8 * 2
    monkeypatch.setattr(one, "_free_bytes", lambda: 0 if one._waiting else left)
    one._waiting.append(pool(1).open(9, 0, TALL))
    one.open(2, 0, SHAPE)  # only the waiting slot stood in the way
    assert not one._waiting and len(one) == 1
    left = 0
    with pytest.raises(Unavailable):
        one.open(2, 1, SHAPE)  # the second step's ring: the first is let go with it
    assert len(one) == 0 and not one._waiting
