"""Quantization with one scale a row: the kernel equals the reference bit for bit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, Poisoned, same_bits

from everface.kernels.linear import quantize_rows as op


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(4, 192), (2, 5120), (1, 13824), (3, 100)])
def test_kernel_is_the_reference(rows: int, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(width)).to(DEVICE, dtype)
    x *= torch.tensor([[1.0], [0.0], [300.0], [1e-3]], device=DEVICE)[:rows].to(dtype)  # a row of zeros among them
    quantized, scale = Poisoned(rows, width, dtype=torch.float8_e4m3fn), Poisoned(rows, 1)
    op.launch(x, quantized.inside, scale.inside)
    want_quantized, want_scale = op.quantize_rows_reference(x)
    assert same_bits(quantized.written(), want_quantized)
    torch.testing.assert_close(scale.written(), want_scale, rtol=1e-6, atol=0)


def test_meaning_of_quantized_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest value of a row is exact, the others are within 1/16, and other rows do not matter."""
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    quantized, scale = op.quantize_rows(x)
    again = op.quantize_rows(torch.cat((x[:1], 1e4 * x[1:])))
    assert same_bits(quantized[:1], again[0][:1]) and torch.equal(scale[:1], again[1][:1])
    assert (quantized.float().abs().amax(-1) == 448).all()
    assert ((quantized.float() * scale - x).abs() <= x.abs() / 16 + scale / 512).all()
    monkeypatch.setattr(op, "writes_e4m3", lambda *_: True)
    by_kernel = op.quantize_rows(x)
    assert same_bits(by_kernel[0], quantized)
    torch.testing.assert_close(by_kernel[1], scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [192, 13824])
def test_gelu_before_the_quantization(width: int) -> None:
    """Within a step of e4m3 of the reference, which is GELU by torch: the kernel's tanh is approximate on a GPU."""
    x = 3 * torch.randn(3, width, generator=torch.Generator().manual_seed(width)).to(DEVICE, torch.bfloat16)
    quantized, scale = Poisoned(3, width, dtype=torch.float8_e4m3fn), Poisoned(3, 1)
    op.launch(x, quantized.inside, scale.inside, True)
    want_quantized, want_scale = op.quantize_rows_reference(x, gelu=True)
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(scale.written(), want_scale, rtol=2e-3, atol=0)
    for values, by in ((quantized.written(), scale.written()), (want_quantized, want_scale)):
        assert ((values.double() * by - exact).abs() <= 1.1 * (exact.abs() / 16 + by / 512)).all()
