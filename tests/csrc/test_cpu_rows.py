"""everface._native.cpu between two GEMMs: each op against its reference, which is in torch, in float64 where only the order of sums differs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels import cpu
from everface.kernels.attention import cross
from everface.kernels.fused import gate_norm_modulate as gnm
from everface.kernels.fused import norm_rope
from everface.kernels.fused import qk_norm_rope_store as op
from everface.kernels.fused.gelu import gelu

F32, BF16 = torch.float32, torch.bfloat16
LIMIT = {F32: 1e-6, BF16: 4e-3}  # of a value: half a unit of bfloat16 is 2e-3 to 4e-3


@pytest.fixture(autouse=True)
def inference(native: None) -> Iterator[None]:
    with torch.inference_mode():
        yield


def drawn(*size: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("model", [F32, BF16])
@pytest.mark.parametrize("width", [48, 192, 1000])
@pytest.mark.parametrize("case", ["input", "norm3", "ffn", "end and input", "one row of y"])
def test_gate_norm_modulate(case: str, width: int, model: torch.dtype) -> None:
    x, y = drawn(1, 3, 5, width, dtype=F32 if case in ("ffn", "end and input") else model), drawn(1, 3, 5, width, dtype=model, seed=1)
    gate, shift, scale = (drawn(1, frames, 1, width, seed=n) for n, frames in enumerate((1, 3, 3)))
    options: Any = {"eps": 1e-6, "norm_dtype": F32 if case == "ffn" else model, "dtype": model}
    arguments: dict[str, tuple[Any, ...]] = {
        "input": (x,), "norm3": (x, y, gate), "ffn": (x, y), "end and input": (x, y, gate), "one row of y": (x, y[:, :1, :1]),
    }  # fmt: skip
    if case == "norm3":
        options["affine"] = (drawn(width, dtype=model, seed=5), drawn(width, dtype=model, seed=6))
    else:
        options["modulation"] = (shift, scale)
    if case == "end and input":
        options["residual_dtype"] = model
    given = arguments[case]
    got = gnm.gate_norm_modulate(*given, **options)
    every: Any = (*given, None, None)[:3]
    want = gnm._reference(*every, options=options)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and error(a, b) < LIMIT[model]
    assert torch.equal(got[0], want[0]) or len(given) == 3  # a sum has one rounding; with a gate the product may have one more


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_queries_and_keys_into_the_ring(dtype: torch.dtype) -> None:
    tokens, heads, d, slots = 12, 3, 16, 40
    parts = drawn(tokens, 3 * heads * d, dtype=dtype).chunk(3, dim=1)
    given: Any = (*parts, *(drawn(heads * d, dtype=dtype, seed=n) for n in (1, 2)), 1e-6, drawn(tokens, d // 2, 2, seed=3))
    rings = [[torch.full((slots, heads, d), 7.0, dtype=dtype) for _ in range(2)] for _ in range(2)]
    for start in (5, torch.tensor(21)):
        got = op.qk_norm_rope_store(*given, *rings[0], start=start)
        want = op.qk_norm_rope_store_reference(*given, *rings[1], start=start)
        assert error(got, want) < LIMIT[dtype]
    assert error(rings[0][0], rings[1][0]) < LIMIT[dtype] and torch.equal(rings[0][1], rings[1][1])
    with pytest.raises(IndexError, match="crosses the end of a ring of 40"):
        op.qk_norm_rope_store(*given, *rings[0], start=torch.tensor(30))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_norm_and_rotation_alone(dtype: torch.dtype) -> None:
    x, weight, table = drawn(2, 5, 3, 16, dtype=dtype), drawn(48, dtype=dtype, seed=1), drawn(5, 8, 2, seed=2)
    assert error(norm_rope.rms_norm(x.flatten(-2), weight, 1e-6), norm_rope.rms_norm_reference(x.flatten(-2), weight, 1e-6)) < LIMIT[dtype]
    cache = torch.full((2, 9, 3, 16), 7.0, dtype=dtype)
    norm_rope.rotate(x, table, out=cache[:, :5])
    assert error(cache[:, :5], norm_rope.rotate_reference(x, table)) < LIMIT[dtype] and (cache[:, 5:] == 7).all()
    quantized = torch.zeros(2, 5, 3, 16, dtype=torch.float8_e4m3fn)
    assert error(norm_rope.rotate(x, table, out=quantized), norm_rope.rotate_reference(x, table)) < 0.05


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("count", [1, 1000, 70_000])
def test_gelu(count: int, dtype: torch.dtype) -> None:
    x = (4 * drawn(count)).to(dtype)
    assert error(gelu(x), F.gelu(x.double(), approximate="tanh")) < LIMIT[dtype]
    extreme = torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30, torch.nan], dtype=dtype)
    torch.testing.assert_close(gelu(extreme)[:5], extreme[:5].clamp_min(0), atol=1e-7, rtol=0)
    assert gelu(extreme)[5].isnan()


def test_the_gradient_of_gelu() -> None:
    with torch.inference_mode(False):
        x, up = (4 * drawn(3, 1000)).to(BF16).requires_grad_(), drawn(3, 1000, dtype=BF16, seed=1)
        exact = x.detach().double().requires_grad_()
        F.gelu(exact, approximate="tanh").backward(up.double())
        y = gelu(x)
        y.backward(up)
        assert x.grad is not None and exact.grad is not None and error(x.grad, exact.grad) < LIMIT[BF16] and x.grad.dtype == BF16
        with torch.no_grad():
            assert torch.equal(gelu(x), y)
        far = torch.tensor([-1e30, -100.0, 100.0, 1e30, torch.nan], dtype=BF16, requires_grad=True)
        gelu(far).sum().backward()
        assert far.grad is not None and far.grad[4].isnan() and far.grad[:4].round(decimals=3).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("batch", "keys"), [(1, 1), (3, 5), (3, 16)])
def test_attention_to_few_keys(batch: int, keys: int, dtype: torch.dtype) -> None:
    q, k, v = drawn(3, 7, 2, 24, dtype=dtype), drawn(batch, keys, 2, 24, dtype=dtype, seed=1), drawn(batch, keys, 2, 24, dtype=dtype, seed=2)
    want = cross.cross_reference(q.double(), k.double(), v.double())
    assert error(cross.cross(q, k, v), want) < LIMIT[dtype]
    assert error(cross.cross(50 * q, k, v), cross.cross_reference((50 * q).double(), k.double(), v.double())) < LIMIT[dtype]


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, table, before = drawn(1, 3, 700, 192, dtype=BF16), drawn(2100, 24, 2), torch.get_num_threads()
    shift, out = drawn(1, 3, 1, 192), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            u = gnm.gate_norm_modulate(x, modulation=(shift, shift), eps=1e-6, norm_dtype=BF16, dtype=BF16)[1]
            out.append(torch.cat([t.flatten() for t in (u, gelu(x), norm_rope.rotate(x.view(2100, 4, 48), table))]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])


def test_what_it_does_not_take_goes_to_torch() -> None:
    half = drawn(2, 4, 8).half()
    assert not cpu.runs_native(half) and gelu(half).dtype == torch.float16
    with torch.device("meta"):
        assert not cpu.runs_native(torch.empty(3))


def test_outside_of_inference_mode_torch_computes() -> None:
    with torch.inference_mode(False):
        x = drawn(2, 4, 8).requires_grad_()
        gelu(x).sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            assert not cpu.runs_native(x) and torch.equal(gelu(x), F.gelu(x, approximate="tanh"))
    assert cpu.runs_native(drawn(2, 4, 8))
