"""Gradients of everface._native.cpu between two GEMMs, against autograd of each op's formula in float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.fused import audio_inject, gate_norm_modulate, native_gradient, norm_rope

F32, BF16 = torch.float32, torch.bfloat16
B, FRAMES, TOKENS, WIDTH, HEADS = 2, 3, 64, 48, 3
LIMIT = 4e-3  # of a value: half a unit of bfloat16 is 2e-3 to 4e-3


@pytest.fixture(autouse=True)
def training(native: None) -> Iterator[None]:
    with torch.autocast("cpu", BF16):
        yield


def drawn(*size: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm())


def compare(op: Callable[..., Tensor], formula: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """Result and gradients of `op` against those of `formula` in float64. Returns the result."""
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    y, want = op(*given), formula(*exact)
    up = drawn(*want.shape, dtype=y.dtype, seed=9).detach()
    y.backward(up)
    want.backward(up.double())
    assert y.shape == want.shape and error(y, want) < LIMIT
    for t, e in zip(given, exact, strict=True):
        if t.requires_grad:
            assert t.grad is not None and e.grad is not None and t.grad.dtype == t.dtype and error(t.grad, e.grad) < LIMIT
    return y


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return gate_norm_modulate.gate_norm_modulate(x, modulation=(shift, scale), eps=1e-6, norm_dtype=F32, dtype=BF16)[1]


@pytest.mark.parametrize("frames", [(1, 1), (1, FRAMES), (B, FRAMES)])
def test_modulated_norm(frames: tuple[int, int]) -> None:
    y = compare(normed, modulated, drawn(B, FRAMES, TOKENS, WIDTH), drawn(*frames, 1, WIDTH, seed=1), drawn(*frames, 1, WIDTH, seed=2))
    assert y.dtype == BF16 and y.grad_fn is not None and "Modulate" in y.grad_fn.name()


def test_modulated_norm_after_a_sum() -> None:
    x, y, gate, m = drawn(B, FRAMES, TOKENS, WIDTH), drawn(B, FRAMES, TOKENS, WIDTH, dtype=BF16, seed=1), drawn(B, FRAMES, 1, WIDTH, seed=2), drawn(1, 1, 1, WIDTH)

    def op(x: Tensor, y: Tensor, gate: Tensor, m: Tensor) -> Tensor:
        summed, u = gate_norm_modulate.gate_norm_modulate(x, y, gate, modulation=(m, m), eps=1e-6, norm_dtype=F32, dtype=BF16)
        assert summed.dtype == F32
        return u

    compare(op, lambda x, y, gate, m: modulated(x + gate * y, m, m), x, y, gate, m)


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_gated_sum(frames: int) -> None:
    given = drawn(B, FRAMES, TOKENS, WIDTH), drawn(B, FRAMES, TOKENS, WIDTH, dtype=BF16, seed=1), drawn(B, frames, 1, WIDTH, seed=2)
    y = compare(gate_norm_modulate.gate_residual, lambda x, y, gate: x + gate * y, *given)
    assert y.dtype == F32 and y.grad_fn is not None and "AddGated" in y.grad_fn.name()


@pytest.mark.parametrize("tokens", [TOKENS, 5])
def test_norm_of_queries(tokens: int) -> None:
    def op(x: Tensor, weight: Tensor) -> Tensor:
        return norm_rope.rms_norm(x, weight, 1e-6)

    weight = (1 + drawn(WIDTH, seed=1).detach().to(BF16).float()).to(BF16).float().requires_grad_()
    y = compare(op, lambda x, w: F.rms_norm(x, (WIDTH,), w, 1e-6), drawn(B, tokens, WIDTH, dtype=BF16), weight)
    assert y.dtype == BF16 and y.grad_fn is not None and "Normalize" in y.grad_fn.name()


def test_rotation() -> None:
    angle = drawn(TOKENS, WIDTH // HEADS // 2, seed=1).detach()
    table = torch.stack((angle.cos(), angle.sin()), dim=-1)
    y = compare(norm_rope.rotate, norm_rope.rotate_reference, drawn(B, TOKENS, HEADS, WIDTH // HEADS, dtype=BF16), table)
    assert y.dtype == BF16 and y.grad_fn is not None and "Turn" in y.grad_fn.name()


def test_audio() -> None:
    def op(x: Tensor, pair: Tensor) -> Tensor:
        return audio_inject.audio_inject(x, pair, BF16)

    compare(op, audio_inject.audio_inject_reference, drawn(B, FRAMES, TOKENS, WIDTH), drawn(B, FRAMES, 2 * WIDTH, dtype=BF16, seed=1))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    before, out = torch.get_num_threads(), list[Tensor]()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            x, weight, m = drawn(1, 6, 256, 192), drawn(192, seed=1), drawn(1, 6, 1, 192, seed=2)
            norm_rope.rms_norm(gate_norm_modulate.gate_residual(x, normed(x, m, m), m).to(BF16), weight, 1e-6).square().sum().backward()
            grads = (x.grad, weight.grad, m.grad)
            out.append(torch.cat([g.flatten() for g in grads if g is not None]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])


def test_where_torch_computes() -> None:
    x, m = drawn(B, FRAMES, TOKENS, WIDTH), drawn(1, 1, 1, WIDTH)
    assert native_gradient.trains_native(x, m) and not native_gradient.trains_native(x.double())
    with torch.inference_mode():
        assert not native_gradient.trains_native(x)
    with torch.autocast("cpu", enabled=False):
        assert not native_gradient.trains_native(x)
        u = normed(x, m, m)
        assert u.grad_fn is not None and "Modulate" not in u.grad_fn.name()
