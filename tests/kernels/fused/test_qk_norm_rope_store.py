"""Norm, rotation and ring write in one kernel, against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, Poisoned, agree

from everface.kernels.fused import qk_norm_rope_store as op

F32, BF16 = torch.float32, torch.bfloat16


def drawn(*size: int, dtype: torch.dtype = F32, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def rope_table(tokens: int, head: int) -> torch.Tensor:
    angle = drawn(tokens, head // 2, seed=9) * 3
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("tokens", "heads", "head"), [(2, 40, 128), (5, 3, 64), (3, 5, 20)])
def test_kernel_is_the_reference(tokens: int, heads: int, head: int, dtype: torch.dtype) -> None:
    """Parts of a fused projection, into a slot in the middle of a ring of NaN; nothing beside the slot is touched."""
    width, start = heads * head, 4
    q, k, v = drawn(tokens, 3 * width, dtype=dtype).chunk(3, dim=1)
    weights = drawn(width, dtype=dtype, seed=1), drawn(width, dtype=dtype, seed=2)
    out, ring_k, ring_v = (Poisoned(n, heads, head, dtype=dtype) for n in (tokens, 12, 12))
    outputs = out.inside, ring_k.inside, ring_v.inside
    op.launch(q, k, v, *weights, 1e-6, rope_table(tokens, head), *outputs, start)
    want_k, want_v = torch.full_like(ring_k.inside, float("nan")), torch.full_like(ring_v.inside, float("nan"))
    want = op.qk_norm_rope_store_reference(q, k, v, *weights, 1e-6, rope_table(tokens, head), want_k, want_v, start)
    agree(out.written(), want, rounded=dtype == BF16)
    slot = slice(start, start + tokens)
    agree(ring_k.inside[slot], want_k[slot], rounded=dtype == BF16)
    assert torch.equal(ring_v.inside[slot], want_v[slot])
    for ring in (ring_k, ring_v):
        assert ring.whole.isnan().sum() == ring.whole.numel() - tokens * width


def test_the_ring_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six blocks through a ring of four: the slots hold blocks 4, 5, 2, 3, by kernel and by reference."""
    tokens, heads, head, blocks = 2, 2, 16, 4
    weight, turn = drawn(heads * head, seed=3), rope_table(tokens, head)
    rings = [tuple(torch.full((blocks * tokens, heads, head), float("nan"), device=DEVICE) for _ in range(2)) for _ in range(2)]
    for use_kernel, (ring_k, ring_v) in enumerate(rings):
        monkeypatch.setattr(op, "runs_triton", lambda *_, on=bool(use_kernel): on)
        for b in range(6):
            q, k, v = (drawn(tokens, heads * head, seed=10 * b + i) for i in range(3))
            start = tokens * (b % blocks)
            where = torch.tensor(start, device=DEVICE) if b % 2 else start  # read from memory, or given
            op.qk_norm_rope_store(q, k, v, weight, weight, 1e-6, turn, ring_k, ring_v, where)
    for by_reference, by_kernel in zip(*rings, strict=True):
        agree(by_kernel, by_reference, rounded=False)
    values = torch.cat([drawn(tokens, heads * head, seed=10 * b + 2) for b in (4, 5, 2, 3)])
    assert torch.equal(rings[1][1].flatten(1), values)


def test_a_block_beyond_the_end_of_the_ring_is_refused() -> None:
    x, ring = drawn(4, 32), torch.zeros(6, 2, 16, device=DEVICE)
    with pytest.raises(AssertionError):
        op.launch(x, x, x, x[0], x[0], 1e-6, rope_table(4, 16), x.clone().view(4, 2, 16), ring, ring.clone(), 3)
