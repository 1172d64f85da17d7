"""KV caches: shapes, limit, memory, freeing."""

import psutil
import pytest
import torch

from everface.core.errors import Unavailable
from everface.runtime.cache import KVPool, KVShape

SHAPE = KVShape(layers=2, ring=24, sink=5, heads=3, width=8)


def test_open_limit_close() -> None:
    pool = KVPool(SHAPE, torch.bfloat16, "cpu", limit=2)
    cache = pool.open(1, 0)
    assert cache.k_LSHd.shape == cache.v_LSHd.shape == (2, 24, 3, 8)
    assert cache.sink_k_LCHd.shape == cache.sink_v_LCHd.shape == (2, 5, 3, 8)
    tensors = list(vars(cache).values())
    assert all(t.dtype == torch.bfloat16 and not t.any() for t in tensors)
    assert sum(t.nbytes for t in tensors) == SHAPE.bytes(torch.bfloat16)
    assert len({t.data_ptr() for t in tensors}) == 4
    other = pool.open(2, 0)
    other.k_LSHd.fill_(1)
    assert not cache.k_LSHd.any()
    with pytest.raises(Unavailable, match="all 2 KV caches"):
        pool.open(1, 1)
    with pytest.raises(RuntimeError, match="already"):
        pool.open(1, 0)
    pool.close(2)
    assert len(pool) == 1 and not pool.open(1, 1).k_LSHd.any()
    pool.close(1)
    pool.close(1)
    assert len(pool) == 0


def test_memory_short() -> None:
    huge = KVShape(layers=40, ring=psutil.virtual_memory().total // 4000, sink=1, heads=40, width=128)
    pool = KVPool(huge, torch.float32, "cpu", limit=1)
    with pytest.raises(Unavailable, match="does not fit"):
        pool.open(1, 0)
    assert len(pool) == 0
