"""Norm, rotation and quantized ring write in one kernel, against the reference and against qk_norm_rope_store."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.fused.test_qk_norm_rope_store import drawn, rope_table
from tests.kernels.poison import DEVICE, Poisoned, same_bits

from everface.kernels.fused import qk_norm_rope_quantize as op
from everface.kernels.fused.qk_norm_rope_store import qk_norm_rope_store_reference

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
pytestmark = pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="the GPU has no e4m3")


def near(got: torch.Tensor, want: torch.Tensor) -> None:
    """The same e4m3 values; a bfloat16 that rounds the other way may move one of them by one step."""
    a, b = got.view(torch.uint8).int(), want.view(torch.uint8).int()
    assert ((a != b).float().mean() <= 0.01) and ((a - b).abs().max() <= 1)


@pytest.mark.parametrize(("tokens", "heads", "head"), [(2, 40, 128), (70, 3, 64), (3, 5, 16)])
@pytest.mark.parametrize("by_number", [True, False], ids=["by number", "from memory"])
def test_kernel_is_the_reference(tokens: int, heads: int, head: int, by_number: bool) -> None:
    """Parts of a fused projection, into a slot in the middle of a ring of NaN; nothing beside the slot is touched."""
    width, start, slots = heads * head, 5, tokens + 11
    q, k, v = (40 * drawn(tokens, 3 * width, dtype=BF16)).chunk(3, dim=1)
    weights = 8 * drawn(width, seed=1, dtype=BF16), 8 * drawn(width, seed=2, dtype=BF16)
    factor = 2.0 ** torch.arange(heads, device=DEVICE).remainder(5).float()
    sizes = (tokens, heads, head), (slots, heads, head), (heads, head, slots)
    out, ring_k, ring_v = (Poisoned(*size, dtype=E4M3) for size in sizes)
    where = (start, None) if by_number else (0, torch.tensor(start, device=DEVICE))
    outputs = out.inside, ring_k.inside, ring_v.inside
    op.launch(q, k, v, *weights, 1e-6, rope_table(tokens, head), *outputs, factor, *where)
    want_k, want_v = (torch.full_like(r.inside.float(), float("nan")).to(E4M3) for r in (ring_k, ring_v))
    want = op.qk_norm_rope_quantize_reference(q, k, v, *weights, 1e-6, rope_table(tokens, head), want_k, want_v, factor, start)
    near(out.written(), want)
    slot = slice(start, start + tokens)
    near(ring_k.inside[slot], want_k[slot])
    assert same_bits(ring_v.inside, want_v) and (ring_v.inside[..., slot].float().abs() == 448).any()  # some saturate, none is NaN
    for ring in (ring_k, ring_v):
        assert ring.whole.float().isnan().sum() == ring.whole.numel() - tokens * width


def test_it_quantizes_what_qk_norm_rope_store_stores() -> None:
    tokens, heads, head, slots = 6, 4, 32, 18
    q, k, v = drawn(tokens, 3 * heads * head, dtype=BF16).chunk(3, dim=1)
    a, b, turn = drawn(heads * head, seed=1, dtype=BF16), drawn(heads * head, seed=2, dtype=BF16), rope_table(tokens, head)
    ring_k, ring_v = (torch.zeros(slots, heads, head, device=DEVICE, dtype=BF16) for _ in "kv")
    plain = qk_norm_rope_store_reference(q, k, v, a, b, 1e-6, turn, ring_k, ring_v, 12)
    quantized_k, quantized_vT = torch.zeros_like(ring_k, dtype=E4M3), torch.zeros(heads, head, slots, device=DEVICE).to(E4M3)
    factor = torch.full((heads,), 16.0, device=DEVICE)
    quantized = op.qk_norm_rope_quantize(q, k, v, a / 4, b / 4, 1e-6, turn, quantized_k, quantized_vT, factor, 12)
    check = near if DEVICE == "cuda" else lambda a, b: torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=0)
    check(quantized, (plain / 4).to(E4M3))
    check(quantized_k, (ring_k / 4).to(E4M3))
    check(quantized_vT.permute(2, 0, 1).contiguous(), (ring_v * 16).to(E4M3))


def test_a_block_beyond_the_end_of_the_ring_is_refused() -> None:
    x, ring, factor = drawn(4, 32, dtype=BF16), torch.zeros(6, 2, 16, device=DEVICE).to(E4M3), torch.ones(2, device=DEVICE)
    with pytest.raises(AssertionError):
        op.launch(x, x, x, x[0], x[0], 1e-6, rope_table(4, 16), ring[:4].clone(), ring, ring.permute(1, 2, 0).contiguous(), factor, 3)
