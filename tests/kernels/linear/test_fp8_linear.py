"""The 8-bit linear layer against golden data: exact quantized values, exact scales, the GEMM within one rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.kernels.linear.fp8_linear import (
    fp8_linear,
    fp8_linear_rows,
    launch_tile,
    quantize_tensor,
    scaled_gemm_native,
    scaled_gemm_reference,
)
from everface.kernels.linear.quantize_rows import quantize_rows

CASES = ("typical", "small", "large")


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    return load_file(Path(__file__).parents[2] / "golden" / "fp8_linear.safetensors")


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest distance in bfloat16 steps."""

    def order(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((order(a) - order(b)).abs().max())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["x", "weight"])
def test_quantized_values_and_scales(data: dict[str, torch.Tensor], case: str, name: str) -> None:
    quantized, scale = quantize_tensor(data[f"{case}.{name}"])
    assert same_bits(quantized, data[f"{case}.{name}_fp8"])
    torch.testing.assert_close(scale, data[f"{case}.{name}_scale"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_quantized_from_float32(data: dict[str, torch.Tensor], case: str) -> None:
    quantized, scale = quantize_tensor(data[f"{case}.weight"].float())
    assert same_bits(quantized, data[f"{case}.weight_fp8_from_f32"])
    torch.testing.assert_close(scale, data[f"{case}.weight_scale_from_f32"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_gemm(data: dict[str, torch.Tensor], case: str) -> None:
    x, w, bias = (data[f"{case}.{n}"] for n in ("x", "weight", "bias"))
    quantized_w, scale_w = quantize_tensor(w)
    y_f32 = scaled_gemm_reference(*quantize_tensor(x), quantized_w, scale_w, bias, torch.float32)
    want = data[f"{case}.y_dequant_f32"]
    assert (y_f32 - want).abs().max() <= 1e-5 * want.abs().max()
    y = fp8_linear(x, quantized_w, scale_w, bias)
    assert y.dtype == torch.bfloat16
    assert ulps(y, data[f"{case}.y_scaled_mm_bf16"]) <= 1
    assert torch.equal(fp8_linear(x.view(2, 5, -1), quantized_w, scale_w, bias), y.view(2, 5, -1))
    full = data[f"{case}.y_unquantised_f32"]
    assert (y.float() - full).square().mean().sqrt() < 0.06 * full.square().mean().sqrt()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_native_backend_agrees(data: dict[str, torch.Tensor], case: str, with_bias: bool) -> None:
    """torch._scaled_mm runs on the CPU too: the layout and the order of its arguments are held without a GPU."""
    args = (
        *quantize_tensor(data[f"{case}.x"]),
        *quantize_tensor(data[f"{case}.weight"]),
        data[f"{case}.bias"] if with_bias else None,
    )
    native = scaled_gemm_native(*args, torch.bfloat16)
    assert ulps(native, scaled_gemm_reference(*args, torch.bfloat16)) <= 1


def test_extremes() -> None:
    quantized, scale = quantize_tensor(torch.zeros(16, 16, dtype=torch.bfloat16))
    assert quantized.float().abs().max() == 0 and scale.item() == pytest.approx(1 / 448)
    quantized, scale = quantize_tensor(torch.tensor([1e30, -1e30, 0.0]))
    assert quantized.float().tolist() == [448.0, -448.0, 0.0] and (quantized.float() * scale)[0].item() == pytest.approx(1e30)


def rows_case(m: int, n: int, k: int, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """(codes_x, scale_x, codes_w, scale_w, bias): tokens of very different size."""
    g = torch.Generator().manual_seed(m + n + k)
    x = torch.randn(m, k, generator=g) * torch.logspace(-2, 2, m)[:, None]
    w, bias = torch.randn(n, k, generator=g) * 0.05, torch.randn(n, generator=g).bfloat16()
    return tuple(t.to(device) for t in (*quantize_rows(x), *quantize_rows(w), bias))


def test_rows_mean_what_they_say() -> None:
    """Against float64; a token's result is its own; scale_w may be a column."""
    quantized_x, scale_x, quantized_w, scale_w, bias = args = rows_case(6, 32, 48)
    exact = (quantized_x.double() * scale_x.double()) @ (quantized_w.double() * scale_w.double()).T + bias.double()
    y = fp8_linear_rows(*args, dtype=torch.float32)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    lifted_x = quantized_x.view(2, 3, -1), scale_x.view(2, 3, 1)
    lifted = fp8_linear_rows(*lifted_x, quantized_w, scale_w[:, 0], bias, gelu=True, dtype=torch.float32)
    torch.testing.assert_close(lifted.view(6, -1), torch.nn.functional.gelu(y, approximate="tanh"))
    first = fp8_linear_rows(quantized_x[:1], scale_x[:1], *args[2:], dtype=torch.float32)
    torch.testing.assert_close(first, y[:1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("gelu", "with_bias", "dtype"), [(True, True, torch.bfloat16), (False, False, torch.float32)])
@pytest.mark.parametrize(("m", "n", "k"), [(37, 48, 80), (16, 32, 32), (65, 80, 144)])
def test_rows_kernel(m: int, n: int, k: int, gelu: bool, with_bias: bool, dtype: torch.dtype) -> None:
    """More tiles than programs, edges that no tile divides, and a last group of tiles that is not full."""
    pytest.importorskip("triton")
    from tests.kernels.poison import DEVICE, Poisoned, agree

    quantized_x, scale_x, quantized_w, scale_w, bias = rows_case(m, n, k, DEVICE)
    maybe = bias if with_bias else None
    y = Poisoned(m, n, dtype=dtype)
    small = {"BM": 16, "BN": 32, "BK": 32, "GROUP": 2, "num_warps": 4, "num_stages": 2}
    launch_tile(quantized_x, scale_x, quantized_w, scale_w, maybe, gelu, y.inside, small)
    want = scaled_gemm_reference(quantized_x, scale_x, quantized_w, scale_w[:, 0], maybe, dtype, gelu)
    largest = want.float().abs().amax(-1, keepdim=True)
    agree((y.written() / largest), (want / largest), rounded=dtype == torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("gelu", [False, True])
def test_rows_on_a_gpu(gelu: bool) -> None:
    """The op's backend and the Triton tile of the GPU, ragged last tile of tokens."""
    from everface.kernels.linear.fp8_linear import launch

    x, scale_x, w, scale_w, bias = args = rows_case(333, 512, 768, "cuda")
    want = scaled_gemm_reference(x, scale_x, w, scale_w[:, 0], bias, torch.float32, gelu)
    largest = want.abs().amax(-1, keepdim=True)
    by_tile = torch.full((333, 512), float("nan"), dtype=torch.bfloat16, device="cuda")
    launch(x, scale_x, w, scale_w.reshape(-1), bias, gelu, by_tile)
    for y in (by_tile, fp8_linear_rows(*args, gelu=gelu, dtype=torch.bfloat16)):
        assert ((y.float() - want).abs() / largest).max() <= 2e-2


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 333, 512, generator=g).bfloat16()
    w, bias = torch.randn(256, 512, generator=g).bfloat16() * 0.05, torch.randn(256, generator=g).bfloat16()
    quantized_w, scale_w = quantize_tensor(w)
    want = fp8_linear(x, quantized_w, scale_w, bias).float()
    quantized_x, scale_x = quantize_tensor(x.cuda())
    assert same_bits(quantized_x.cpu(), quantize_tensor(x)[0]) and torch.equal(scale_x.cpu(), quantize_tensor(x)[1])
    got = fp8_linear(x.cuda(), quantized_w.cuda(), scale_w.cuda(), bias.cuda()).cpu().float()
    assert (got - want).abs().max() <= 2e-2 * want.abs().max()  # fast accumulation keeps fewer bits, then bfloat16
