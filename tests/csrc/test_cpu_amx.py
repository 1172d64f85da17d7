"""everface._native.cpu on a matrix unit: GEMM and attention in bfloat16 against float64, beside torch's own error."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everface.kernels.attention import block_causal, cross, self_attention
from everface.kernels.attention.native_gradient import operands
from everface.kernels.linear.packed_linear import packs
from everface.networks.transformer.linear import PackedLinear, pack_linears

BF16 = torch.bfloat16
pytestmark = pytest.mark.usefixtures("amx")
HALF_UNIT = 2**-8  # of bfloat16, the most that one rounding changes a value by


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(BF16)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("rows", [1, 7, 32, 100, 192])
@pytest.mark.parametrize(("out", "width"), [(576, 192), (40, 64), (192, 768), (3, 32)])
def test_linear(out: int, width: int, rows: int) -> None:
    layer, x = nn.Linear(width, out).to(BF16).requires_grad_(False), drawn(1, 1, rows, width)
    packed, want = PackedLinear(layer), F.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert packed(x).shape == want.shape and packed(x).dtype == BF16
    assert error(packed(x), want) < 1.05 * error(layer(x), want) + 1e-4
    assert error(packed(x, gelu=True), F.gelu(want, approximate="tanh")) < HALF_UNIT + 1e-4
    assert torch.equal(packed(x[:, :, ::2]), packed(x)[:, :, ::2])  # rows with gaps; and no row sees another


@pytest.mark.parametrize(("tokens", "slots", "used", "heads", "d"), [(192, 900, 852, 4, 48), (50, 64, 33, 2, 64), (17, 8, 5, 3, 16), (64, 300, 300, 2, 128)])
def test_attention(tokens: int, slots: int, used: int, heads: int, d: int) -> None:
    q, k, v = drawn(tokens, heads, d), drawn(slots, heads, d, seed=1), drawn(slots, heads, d, seed=2)
    k[used:], v[used:] = torch.nan, torch.nan  # not written yet
    want = block_causal.block_causal_reference(q.double(), k.double(), v.double(), used)
    torchs = block_causal.block_causal_reference(q, k, v, used)
    assert block_causal.runs_amx(q, k, v)
    got = self_attention.block_causal(q, k, v, used)
    assert got.dtype == BF16 and error(got, want) < 1.1 * error(torchs, want) + 1e-4
    wide = torch.cat((drawn(tokens, 1, heads * d, seed=3), q.reshape(tokens, 1, -1)), dim=1)[:, 1].view(tokens, heads, d)  # rows of q apart
    assert torch.equal(self_attention.block_causal(wide, k, v, used), got)
    sharp = self_attention.block_causal(30 * q, k, v, used)
    assert error(sharp, block_causal.block_causal_reference((30 * q).double(), k.double(), v.double(), used)) < 6e-3


@pytest.mark.parametrize(
    ("batch", "tokens", "keys", "heads", "d"), [(2, 192, 350, 4, 48), (5, 64, 5, 4, 48), (2, 50, 33, 3, 16), (1, 33, 100, 2, 128), (1, 1, 2, 1, 64)]
)
def test_the_gradient_of_attention(batch: int, tokens: int, keys: int, heads: int, d: int) -> None:
    with torch.inference_mode(False):
        given = [drawn(batch, n, heads, d, seed=i).requires_grad_() for i, n in enumerate((tokens, keys, keys))]
        up = drawn(batch, heads, tokens, d, seed=7).transpose(1, 2)

        def run(op: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor]) -> list[Tensor]:
            out = op(*inputs)
            return [out.detach(), *torch.autograd.grad(out, inputs, up.to(out.dtype))]

        exact = run(cross.cross_reference, [t.detach().double().requires_grad_() for t in given])
        torchs, ours = run(cross.cross_reference, given), run(cross.cross, given)
        assert all(a.dtype == BF16 and a.shape == b.shape and error(a, b) < 1.1 * error(c, b) + 1e-4 for a, b, c in zip(ours, exact, torchs, strict=True))
        with torch.no_grad():
            assert torch.equal(cross.cross(*given), ours[0])  # what a rollout makes without gradients and repeats with them
        with torch.autocast("cpu", torch.bfloat16):
            wide = [t.detach().float().requires_grad_() for t in given]
            assert torch.equal(run(cross.cross, wide)[0], ours[0])
        gaps = [torch.stack([t, t], 3).flatten(2, 3)[:, :, ::2].detach().requires_grad_() for t in given]
        assert all(torch.equal(a, b) for a, b in zip(run(cross.cross, gaps), ours, strict=True))


def test_attention_that_is_not_taken_goes_to_torch() -> None:
    with torch.inference_mode(False):
        odd, plain, once = drawn(2, 9, 2, 24), drawn(2, 9, 2, 32), drawn(1, 9, 2, 32)
        assert operands(plain, plain, plain) is not None
        assert operands(odd, odd, odd) is operands(plain, once, once) is operands(*[plain.float()] * 3) is None
    assert operands(plain, plain, plain) is None  # inference mode


def test_a_nan_is_not_hidden() -> None:
    q, k, v = drawn(40, 2, 16), drawn(50, 2, 16, seed=1), drawn(50, 2, 16, seed=2)
    q[3, 1, 5] = torch.nan
    got = self_attention.block_causal(q, k, v, 50)
    assert got[3, 1].isnan().all() and got[3, 0].isfinite().all() and got[4:].isfinite().all()
    layer, x = PackedLinear(nn.Linear(64, 48).to(BF16)), drawn(33, 64)
    x[32, 7] = torch.nan
    for gelu in (False, True):
        assert layer(x, gelu)[32].isnan().all() and layer(x, gelu)[:32].isfinite().all()


def test_any_number_of_threads_gives_the_same_bits_beside_torchs_own_tiles() -> None:
    q, k, v, x = drawn(192, 4, 48), drawn(900, 4, 48, seed=1), drawn(900, 4, 48, seed=2), drawn(192, 192)
    layer, square, out, before = PackedLinear(nn.Linear(192, 768).to(BF16)), drawn(256, 256), [], torch.get_num_threads()
    product = square @ square
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out.append((layer(x, gelu=True), self_attention.block_causal(q, k, v, 852)))
            assert torch.equal(square @ square, product)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(out[0] * 2, out[1] + out[2], strict=True):
        assert torch.equal(a, b)


def test_only_what_fits_is_packed() -> None:
    part = nn.ModuleDict({"a": nn.Linear(64, 8), "b": nn.Linear(60, 8).to(BF16), "c": nn.Linear(64, 8).to(BF16)}).requires_grad_(False)
    pack_linears(part, ("a", "b", "c"))
    assert [type(layer) for layer in part.values()] == [nn.Linear, nn.Linear, PackedLinear]
    assert not packs(nn.Linear(64, 8).to(BF16).half().weight)
