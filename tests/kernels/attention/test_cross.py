"""Cross-attention: the kernel under the interpreter (or on a GPU) against its reference, and the op around both."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, attention_tolerance

from everface.kernels.attention.cross import (
    cost,
    cross,
    cross_op,
    cross_quantized,
    cross_quantized_op,
    cross_quantized_reference,
    cross_reference,
    launch_cross,
    launch_cross_quantized,
)
from everface.kernels.launch import runs_triton


def draw(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def poisoned(x: torch.Tensor, slots: int) -> torch.Tensor:
    """x as the first rows of a longer buffer; the rest is NaN."""
    rest = x.new_full((x.shape[0], slots, *x.shape[2:]), float("nan"))
    return torch.cat((x, rest), 1)[:, : x.shape[1]]


@pytest.mark.parametrize(
    ("batch", "kv_batch", "tokens", "keys", "heads", "d", "dtype"),
    [
        (3, 3, 65, 5, 2, 128, torch.bfloat16),  # audio: one tile of keys, one query over a tile
        (3, 3, 7, 5, 2, 48, torch.float32),
        (2, 2, 64, 16, 1, 64, torch.float16),  # as many keys as one tile holds
        (2, 1, 70, 150, 1, 128, torch.bfloat16),  # text: whole tiles and a tail, keys shared by the batch
        (2, 2, 33, 64, 2, 48, torch.bfloat16),  # no tail
        (1, 1, 67, 45, 2, 48, torch.float32),
        (1, 1, 1, 17, 1, 8, torch.float32),
    ],
)
@pytest.mark.parametrize("use_descriptors", [True, False], ids=["descriptors", "pointers"])
def test_kernel_equals_reference(
    batch: int, kv_batch: int, tokens: int, keys: int, heads: int, d: int, dtype: torch.dtype, use_descriptors: bool
) -> None:
    q = draw(batch, tokens, heads, d, dtype=dtype, seed=1)
    k, v = (draw(kv_batch, keys, heads, d, dtype=dtype, seed=s) for s in (2, 3))
    o = launch_cross(q, k, v, use_descriptors)
    assert o.shape == q.shape and o.dtype == dtype
    exact = cross_reference(q.double(), k.double(), v.double())
    assert (o.double() - exact).abs().max() <= attention_tolerance(dtype, d) * exact.abs().max()


@pytest.mark.parametrize(("batch", "tokens", "keys", "d"), [(1, 70, 150, 128), (2, 33, 45, 48), (1, 5, 7, 64)])
@pytest.mark.parametrize("use_descriptors", [True, False], ids=["descriptors", "pointers"])
def test_quantized_output(batch: int, tokens: int, keys: int, d: int, use_descriptors: bool) -> None:
    """Within half a step of e4m3 of the exact output; every token has the scale; a value at the bound is 448, not NaN."""
    q, k, v = (draw(b, n, 2, d, dtype=torch.bfloat16, seed=s) for b, n, s in ((batch, tokens, 1), (1, keys, 2), (1, keys, 3)))
    v[..., 0] = 5.0  # every mean of it is at the bound
    scale_1 = v.abs().amax().float().reshape(1) / 448
    exact = cross_reference(q.double(), k.double(), v.double())
    for quantized, scale in (launch_cross_quantized(q, k, v, scale_1, use_descriptors), cross_quantized_reference(q, k, v, scale_1)):
        assert quantized.shape == q.shape and quantized.dtype == torch.float8_e4m3fn
        assert scale.shape == (batch, tokens, 1) and torch.equal(scale, scale_1.expand_as(scale))
        off = (quantized.double() * scale_1.double() - exact).abs()
        assert (off <= 2**-4 * exact.abs() + 2**-9 * scale_1 + 4e-3 * exact.abs().max()).all()
        assert (quantized[..., 0].float() >= 416).all()
    assert torch.equal(cross_quantized(q, k, v, scale_1)[0].float(), quantized.float()) or DEVICE == "cuda"


def test_keys_beyond_the_list_weigh_nothing() -> None:
    q = draw(1, 3, 1, 64, dtype=torch.float32, seed=1)
    k, v = (poisoned(draw(1, 21, 1, 64, dtype=torch.float32, seed=s), 11) for s in (2, 3))
    torch.testing.assert_close(launch_cross(q, k, v), cross_reference(q, k, v), rtol=1e-5, atol=2e-6)


def test_large_scores_do_not_overflow() -> None:
    q, k = (200 * draw(1, 4, 1, 64, dtype=torch.float32, seed=s) for s in (1, 2))
    v = draw(1, 4, 1, 64, dtype=torch.float32, seed=3)
    torch.testing.assert_close(launch_cross(q, k, v), cross_reference(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("keys", [5, 512])
def test_kernel_equals_reference_at_14b(keys: int) -> None:
    q = draw(3, 1056, 40, 128, dtype=torch.bfloat16, seed=1)
    k, v = (draw(3, keys, 40, 128, dtype=torch.bfloat16, seed=s) for s in (2, 3))
    exact = cross_reference(q.double(), k.double(), v.double())
    assert (launch_cross(q, k, v).double() - exact).abs().max() <= attention_tolerance(torch.bfloat16, 128) * exact.abs().max()


def test_too_wide_heads_are_refused() -> None:
    x = draw(1, 4, 1, 136, dtype=torch.float32, seed=1)
    with pytest.raises(ValueError, match="wider than the 128"):
        launch_cross(x, x, x)


def test_cpu_path_is_the_reference_and_differentiable() -> None:
    q, k, v = (torch.randn(1, 4, 2, 8, requires_grad=True) for _ in range(3))
    assert not runs_triton(q, k, v)
    o = cross(q, k, v)
    assert torch.equal(o, cross_reference(q, k, v))
    o.sum().backward()
    assert all(x.grad is not None for x in (q, k, v))


def test_op_traces_without_data() -> None:
    q, k = torch.empty(2, 9, 3, 16, device="meta", dtype=torch.bfloat16), torch.empty(1, 5, 3, 16, device="meta", dtype=torch.bfloat16)
    o = cross_op(q, k, k)
    assert (o.shape, o.dtype) == (q.shape, q.dtype)
    quantized, scale = cross_quantized_op(q, k, k, torch.empty(1, device="meta"))
    assert (quantized.shape, quantized.dtype, scale.shape, scale.dtype) == (q.shape, torch.float8_e4m3fn, (2, 9, 1), torch.float32)


def test_work_counts_both_products_and_every_byte() -> None:
    assert cost(3, 1056, 512, 40, 128, 1, 2) == (4 * 3168 * 512 * 5120, 2 * 5120 * 2 * (3168 + 512))
