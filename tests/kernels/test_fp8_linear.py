"""The 8-bit linear layer against golden data: exact codes, exact scales, one rounding away in the product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.kernels.linear.fp8_linear import fp8_linear, quantise_tensor, scaled_product_native, scaled_product_reference

CASES = ("typical", "small", "large")


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    return load_file(Path(__file__).parents[1] / "golden" / "fp8_linear.safetensors")


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest distance in bfloat16 steps."""

    def order(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((order(a) - order(b)).abs().max())


def same_codes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["x", "weight"])
def test_codes_and_scales(data: dict[str, torch.Tensor], case: str, name: str) -> None:
    codes, scale = quantise_tensor(data[f"{case}.{name}"])
    assert same_codes(codes, data[f"{case}.{name}_fp8"])
    torch.testing.assert_close(scale, data[f"{case}.{name}_scale"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_float32_product_variant(data: dict[str, torch.Tensor], case: str) -> None:
    codes, scale = quantise_tensor(data[f"{case}.weight"].float())
    assert same_codes(codes, data[f"{case}.weight_fp8_from_f32"])
    torch.testing.assert_close(scale, data[f"{case}.weight_scale_from_f32"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_product(data: dict[str, torch.Tensor], case: str) -> None:
    x, w, bias = (data[f"{case}.{n}"] for n in ("x", "weight", "bias"))
    codes_w, scale_w = quantise_tensor(w)
    y_f32 = scaled_product_reference(*quantise_tensor(x), codes_w, scale_w, bias, torch.float32)
    want = data[f"{case}.y_dequant_f32"]
    assert (y_f32 - want).abs().max() <= 1e-5 * want.abs().max()
    y = fp8_linear(x, codes_w, scale_w, bias)
    assert y.dtype == torch.bfloat16
    assert ulps(y, data[f"{case}.y_scaled_mm_bf16"]) <= 1
    assert torch.equal(fp8_linear(x.view(2, 5, -1), codes_w, scale_w, bias), y.view(2, 5, -1))
    full = data[f"{case}.y_unquantised_f32"]
    assert (y.float() - full).square().mean().sqrt() < 0.06 * full.square().mean().sqrt()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_native_backend_agrees(data: dict[str, torch.Tensor], case: str, with_bias: bool) -> None:
    """torch._scaled_mm runs on the CPU too: the layout and the order of its arguments are held without a GPU."""
    args = (
        *quantise_tensor(data[f"{case}.x"]),
        *quantise_tensor(data[f"{case}.weight"]),
        data[f"{case}.bias"] if with_bias else None,
    )
    native = scaled_product_native(*args, torch.bfloat16)
    assert ulps(native, scaled_product_reference(*args, torch.bfloat16)) <= 1


def test_extremes() -> None:
    codes, scale = quantise_tensor(torch.zeros(16, 16, dtype=torch.bfloat16))
    assert codes.float().abs().max() == 0 and scale.item() == pytest.approx(1 / 448)
    codes, scale = quantise_tensor(torch.tensor([1e30, -1e30, 0.0]))
    assert codes.float().tolist() == [448.0, -448.0, 0.0] and (codes.float() * scale)[0].item() == pytest.approx(1e30)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 333, 512, generator=g).bfloat16()
    w, bias = torch.randn(256, 512, generator=g).bfloat16() * 0.05, torch.randn(256, generator=g).bfloat16()
    codes_w, scale_w = quantise_tensor(w)
    want = fp8_linear(x, codes_w, scale_w, bias).float()
    codes_x, scale_x = quantise_tensor(x.cuda())
    assert same_codes(codes_x.cpu(), quantise_tensor(x)[0]) and torch.equal(scale_x.cpu(), quantise_tensor(x)[1])
    got = fp8_linear(x.cuda(), codes_w.cuda(), scale_w.cuda(), bias.cuda()).cpu().float()
    assert (got - want).abs().max() <= 2e-2 * want.abs().max()  # fast accumulation keeps fewer bits, then bfloat16
