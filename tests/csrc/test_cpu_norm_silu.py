"""everface._native.cpu: norm_silu and its gradient against float64, for any width and number of threads."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from everface.kernels import cpu
from everface.kernels.video import norm_silu as op

LIMIT = {torch.float32: 5e-7, torch.bfloat16: 3e-3}  # of rounding: half a unit of bfloat16 is 2e-3 to 4e-3 of a value
SHAPES = [(2, 16, 3, 5, 7), (1, 24, 2, 9, 9), (1, 96, 1, 13, 11), (1, 30, 2, 8, 9), (1, 1500, 1, 3, 2), (1, 7, 1, 1, 1)]


def video(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """[B, C, ...], channels last in memory."""
    values = torch.randn(shape[0], *shape[2:], shape[1], generator=torch.Generator().manual_seed(seed))
    return (3 * values).to(dtype).movedim(-1, 1)


def truth(x: Tensor, gamma: Tensor) -> Tensor:
    norm = x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    n = (x / norm * x.shape[1] ** 0.5).movedim(1, -1) * gamma
    return (n * torch.sigmoid(n)).movedim(-1, 1)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, gamma = video(shape, dtype).requires_grad_(), torch.linspace(0.5, 2, shape[1]).requires_grad_()
    y, up = op.norm_silu(x, gamma), video(shape, dtype, 1)
    y.backward(up)
    exact_x, exact_gamma = x.detach().double().requires_grad_(), gamma.detach().double().requires_grad_()
    exact = truth(exact_x, exact_gamma)
    exact.backward(up.double())
    assert y.dtype == dtype and op.takes(x.detach().movedim(1, -1)) and x.grad is not None and gamma.grad is not None
    assert exact_x.grad is not None and exact_gamma.grad is not None
    assert error(y.detach(), exact.detach()) < LIMIT[dtype]
    assert error(x.grad, exact_x.grad) < LIMIT[dtype]
    assert error(gamma.grad, exact_gamma.grad) < 2e-6


@pytest.mark.usefixtures("native")
def test_extreme_values() -> None:
    x = torch.zeros(1, 16, 1, 2, 3).movedim(1, -1).contiguous().movedim(-1, 1)
    gamma = torch.full((16,), 40.0)
    assert op.norm_silu(x, gamma).abs().max() == 0  # a black frame
    x[0, :, 0, 0, 0], x[0, 0, 0, 1, 1], x[0, :, 0, 1, 2] = -1.0, torch.nan, 1e30
    for dtype in LIMIT:
        y = op.norm_silu(x.to(dtype), gamma)[0, :, 0]
        assert y[:, 0, 0].abs().max() < 1e-15 and y[:, 1, 1].isnan().all()  # silu(-40); and a NaN is not hidden
        assert y[:, 1, 2].isfinite().all() or dtype == torch.float32  # its squares overflow, as in torch: the norm is infinite, the result 0


@pytest.mark.usefixtures("native")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, gamma, before = video((1, 24, 4, 17, 19), torch.bfloat16), torch.linspace(0.5, 2, 24), torch.get_num_threads()
    out = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out.append(op.norm_silu(x, gamma))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])


def test_a_module_of_an_earlier_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.native, "find", lambda: SimpleNamespace(ring=None))
    cpu.native_cpu.cache_clear()
    try:
        assert cpu.native_cpu() is None and op.norm_silu(video((1, 16, 1, 2, 2), torch.float32), torch.ones(16)).isfinite().all()
    finally:
        cpu.native_cpu.cache_clear()


@pytest.mark.usefixtures("native")
def test_what_it_cannot_take_goes_to_torch() -> None:
    x, gamma = video((1, 16, 2, 4, 4), torch.float32), torch.ones(16)
    plain = x.contiguous()  # channels first in memory
    assert not op.takes(plain.movedim(1, -1)) and not op.takes(x.half().movedim(1, -1))
    torch.testing.assert_close(op.norm_silu(plain, gamma), op.norm_silu(x, gamma))
    out = torch.empty(1, 4, 4, 4, 16)
    op.norm_silu_into(out[:, 2:], x, gamma)
    torch.testing.assert_close(out[:, 2:].movedim(-1, 1), op.norm_silu(x, gamma))
