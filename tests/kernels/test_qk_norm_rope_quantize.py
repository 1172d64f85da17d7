"""Norm, rotation and the ring's codes in one kernel, against the reference and against qk_norm_rope_store."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, Poisoned, same_bits

from everface.kernels.fused import qk_norm_rope_quantize as op
from everface.kernels.fused.qk_norm_rope_store import qk_norm_rope_store_reference, rotate

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
pytestmark = pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="knows no e4m3")


def made(*size: int, seed: int = 0, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def table(tokens: int, head: int) -> torch.Tensor:
    angle = made(tokens, head // 2, seed=9, dtype=torch.float32) * 3
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def near(got: torch.Tensor, want: torch.Tensor) -> None:
    """The same codes; a bfloat16 that fell to the other side of an edge may move one of them by one."""
    a, b = got.view(torch.uint8).int(), want.view(torch.uint8).int()
    assert ((a != b).float().mean() <= 0.01) and ((a - b).abs().max() <= 1)


@pytest.mark.parametrize(("tokens", "heads", "head"), [(2, 40, 128), (70, 3, 64), (3, 5, 16)])
@pytest.mark.parametrize("told", [True, False], ids=["told", "from memory"])
def test_kernel_is_the_reference(tokens: int, heads: int, head: int, told: bool) -> None:
    """Parts of a fused projection, into a slot in the middle of a ring of NaN; nothing beside the slot is touched."""
    width, start, slots = heads * head, 5, tokens + 11
    q, k, v = (40 * made(tokens, 3 * width)).chunk(3, dim=1)
    weights, factor = (8 * made(width, seed=1), 8 * made(width, seed=2)), 2.0 ** torch.arange(heads, device=DEVICE).remainder(5).float()
    sizes = (tokens, heads, head), (slots, heads, head), (heads, head, slots)
    out, ring_k, ring_v = (Poisoned(*size, dtype=E4M3) for size in sizes)
    where = (start, None) if told else (0, torch.tensor(start, device=DEVICE))
    outputs = out.inside, ring_k.inside, ring_v.inside
    op.launch(q, k, v, *weights, 1e-6, table(tokens, head), *outputs, factor, *where)
    want_k, want_v = (torch.full_like(r.inside.float(), float("nan")).to(E4M3) for r in (ring_k, ring_v))
    want = op.qk_norm_rope_quantize_reference(q, k, v, *weights, 1e-6, table(tokens, head), want_k, want_v, factor, start)
    near(out.written(), want)
    slot = slice(start, start + tokens)
    near(ring_k.inside[slot], want_k[slot])
    assert same_bits(ring_v.inside, want_v) and (ring_v.inside[..., slot].float().abs() == 448).any()  # some saturate, none is NaN
    for ring in (ring_k, ring_v):
        assert ring.whole.float().isnan().sum() == ring.whole.numel() - tokens * width


def test_codes_are_those_of_what_the_plain_op_stores() -> None:
    tokens, heads, head, slots = 6, 4, 32, 18
    q, k, v = made(tokens, 3 * heads * head).chunk(3, dim=1)
    a, b, turn = made(heads * head, seed=1), made(heads * head, seed=2), table(tokens, head)
    ring_k, ring_v = (torch.zeros(slots, heads, head, device=DEVICE, dtype=BF16) for _ in "kv")
    plain = qk_norm_rope_store_reference(q, k, v, a, b, 1e-6, turn, ring_k, ring_v, 12)
    codes_k, codes_vT = torch.zeros_like(ring_k, dtype=E4M3), torch.zeros(heads, head, slots, device=DEVICE).to(E4M3)
    factor = torch.full((heads,), 16.0, device=DEVICE)
    quantized = op.qk_norm_rope_quantize(q, k, v, a / 4, b / 4, 1e-6, turn, codes_k, codes_vT, factor, 12)
    check = near if DEVICE == "cuda" else lambda a, b: torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=0)
    check(quantized, (plain / 4).to(E4M3))
    check(codes_k, (ring_k / 4).to(E4M3))
    check(codes_vT.permute(2, 0, 1).contiguous(), (ring_v * 16).to(E4M3))


def test_a_rotation_that_ends_in_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, turn = 100 * made(2, 3, 3, 64, seed=4), table(3, 64)
    want = rotate(x, turn).clamp(-448, 448).to(E4M3)
    if DEVICE == "cpu":
        assert same_bits(rotate(x, turn, torch.empty_like(want)), want)
        monkeypatch.setattr("everface.kernels.fused.qk_norm_rope_store.runs_triton", lambda *_: True)
    cache = torch.zeros(2, 5, 3, 64, device=DEVICE).to(E4M3)
    near(rotate(x, turn, out=cache[:, :3]), want)
    assert not cache[:, 3:].float().any()


def test_a_block_beyond_the_end_of_the_ring_is_refused() -> None:
    x, ring, factor = made(4, 32), torch.zeros(6, 2, 16, device=DEVICE).to(E4M3), torch.ones(2, device=DEVICE)
    with pytest.raises(AssertionError):
        op.launch(x, x, x, x[0], x[0], 1e-6, table(4, 16), ring[:4].clone(), ring, ring.permute(1, 2, 0).contiguous(), factor, 3)
