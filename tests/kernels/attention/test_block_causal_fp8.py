"""Attention over an e4m3 KV cache: the kernel under the interpreter (or on a GPU) against its reference and exact attention."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE

from everface.kernels.attention.block_causal import block_causal_reference, mask_of
from everface.kernels.attention.block_causal_fp8 import block_causal_fp8_reference, cost, launch_block_causal_fp8
from everface.kernels.attention.self_attention import block_causal_fp8, block_causal_fp8_op
from everface.kernels.fused.row_primitives import to_e4m3
from everface.networks.transformer.kv_cache import kv_pair

E4M3 = torch.float8_e4m3fn
ON_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(ON_GPU and torch.cuda.get_device_capability() < (9, 0), reason="from sm_90 on")


class Case(NamedTuple):
    """Arguments of the op. Slots that are not used hold NaN, and so does the padding of the rows of values."""

    q_THd: torch.Tensor
    k_NHd: torch.Tensor
    vT_HdN: torch.Tensor
    used: int
    qk_scale_H: torch.Tensor
    v_scale_H: torch.Tensor


def drawn(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def as_cached(x_SHd: torch.Tensor) -> torch.Tensor:
    """The same values [H, d, S] as a KV cache holds them, the padding NaN."""
    slots, heads, d = x_SHd.shape
    _, v = kv_pair((1, slots, heads, d), torch.bfloat16, x_SHd.device, E4M3)
    whole = torch.as_strided(v, (v.untyped_storage().nbytes(),), (1,))
    whole.fill_(float("nan"))
    v[0].copy_(x_SHd)
    return v[0].permute(1, 2, 0)


def draw(tokens: int, slots: int, used: int, heads: int, d: int) -> tuple[Case, torch.Tensor]:
    """Quantized standard normals, each with a scale a head; and exact attention over the numbers before quantization."""
    scale_q, scale_k, scale_v = (2.0 ** -torch.arange(n, n + heads, device=DEVICE).float() for n in (4, 5, 6))
    q, k, v = (drawn(n, heads, d, seed=s) for s, n in enumerate((tokens, slots, slots)))
    exact = block_causal_reference(q.double(), k.double(), v.double(), used)
    k[used:] = v[used:] = float("nan")
    q, k, v = (to_e4m3(x / scale[:, None]) for x, scale in ((q, scale_q), (k, scale_k), (v, scale_v)))
    return Case(q, k, as_cached(v), used, scale_q * scale_k, scale_v), exact


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize(
    ("tokens", "slots", "used", "heads", "d"),
    [
        (67, 422, 422, 1, 128),  # queries and keys ragged
        (64, 256, 256, 2, 64),  # nothing ragged
        (33, 137, 57, 2, 48),  # the ring not yet full, no row of values a multiple of 16 long
        (7, 44, 12, 3, 48),  # the first block
        (330, 103, 103, 2, 16),  # more tiles than programs: each loops
        (65, 128, 128, 1, 128),  # a single tile
    ],
)
def test_kernel_equals_reference(tokens: int, slots: int, used: int, heads: int, d: int) -> None:
    """They quantize weights relative to different maxima: that is 2 % of a random output, which is an average of noise."""
    case, exact = draw(tokens, slots, used, heads, d)
    got, want = launch_block_causal_fp8(*case), block_causal_fp8_reference(*case)
    assert got.shape == want.shape == case.q_THd.shape and got.dtype == want.dtype == torch.bfloat16
    assert relative(got, want) < 0.03
    assert relative(got, exact) < 0.1 and relative(want, exact) < 0.1  # three bits of four roundings: docs/numerics.md


def test_each_head_reads_its_own_ranges() -> None:
    """What no range has is far too large to be attended to unnoticed."""
    case, _ = draw(67, 210, 210, 3, 48)
    ranges = torch.tensor([[(0, 40), (0, 0)], [(0, 0), (21, 189)], [(40, 30), (209, 1)]], dtype=torch.int32, device=DEVICE)
    case.vT_HdN.copy_(torch.where(mask_of(ranges, 210)[:, None], case.vT_HdN.float(), 448).to(E4M3))
    got, want = launch_block_causal_fp8(*case, ranges), block_causal_fp8(*case, ranges)
    assert relative(got, want) <= 2e-2
    for head, spans in enumerate(ranges.tolist()):
        slots = [slot for first, count in spans for slot in range(first, first + count)]
        v_HdS = as_cached(case.vT_HdN[head : head + 1, :, slots].permute(2, 0, 1).float())
        scales = case.qk_scale_H[head : head + 1], case.v_scale_H[head : head + 1]
        one = block_causal_fp8_reference(case.q_THd[:, head : head + 1], case.k_NHd[slots, head : head + 1], v_HdS, len(slots), *scales)
        torch.testing.assert_close(want[:, head : head + 1], one)


def test_only_the_quantization_of_weights_is_lost() -> None:
    """Against exact attention over the quantized values: the rest is the quantization of weights."""
    case, _ = draw(40, 390, 390, 2, 64)
    q, k, v = case.q_THd.double() * case.qk_scale_H[:, None].double(), case.k_NHd.double(), case.vT_HdN.permute(2, 0, 1).double()
    exact = block_causal_reference(q, k, v, len(k)) * case.v_scale_H[:, None]
    for got in (launch_block_causal_fp8(*case), block_causal_fp8_reference(*case)):
        assert relative(got, exact) < 0.03


def test_small_weights_of_many_keys_count() -> None:
    """One key far above 4000 others which weigh 2^-12 each, as much as it does together: without the lift e4m3 would drop them all."""
    keys, d = 4096, 16
    q, k = torch.zeros(1, 1, d, device=DEVICE), torch.zeros(keys, 1, d, device=DEVICE)
    q[..., 0], k[0, 0, 0] = 12 * 0.6931472 * d**0.5 / 8, 8.0
    v = torch.full((keys, 1, d), -1.0, device=DEVICE)
    v[0] = 1.0
    one = torch.ones(1, device=DEVICE)
    q_scale = q[0, 0, :1].clone()
    case = Case((q / q_scale).to(E4M3), k.to(E4M3), as_cached(v.to(E4M3)), keys, q_scale, one)
    for got in (launch_block_causal_fp8(*case), block_causal_fp8_reference(*case)):
        assert got.float().abs().max() < 0.02, got


def test_scales_are_those_of_the_head() -> None:
    case, _ = draw(9, 64, 64, 3, 32)
    doubled = case._replace(v_scale_H=case.v_scale_H * torch.tensor([1.0, 2.0, 4.0], device=DEVICE))
    plain, more = launch_block_causal_fp8(*case).float(), launch_block_causal_fp8(*doubled).float()
    assert torch.equal(more, plain * torch.tensor([1.0, 2.0, 4.0], device=DEVICE)[:, None])
    flat = case._replace(qk_scale_H=torch.full((3,), 2.0**-40, device=DEVICE))  # every key weighs the same
    mean = case.vT_HdN.float().mean(-1) * case.v_scale_H[:, None]
    torch.testing.assert_close(launch_block_causal_fp8(*flat).float(), mean.expand(9, -1, -1), rtol=2**-7, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("used", [15312, 5808])
def test_kernel_equals_reference_at_14b(used: int) -> None:
    """704x384: sums over 15,312 keys in the precision of the tensor cores."""
    case, exact = draw(3168, 15312, used, 2, 128)
    got = launch_block_causal_fp8(*case)
    assert relative(got, block_causal_fp8_reference(*case)) < 0.03
    assert relative(got, exact) < 0.1


def test_wrong_arguments_are_refused() -> None:
    case, _ = draw(4, 20, 20, 2, 16)
    with pytest.raises(ValueError, match="21 slots used of 20"):
        launch_block_causal_fp8(*case._replace(used=21))
    with pytest.raises(ValueError, match="side by side"):
        launch_block_causal_fp8(*case._replace(vT_HdN=case.k_NHd.permute(1, 2, 0)))
    with pytest.raises(ValueError, match="16 bytes"):
        launch_block_causal_fp8(*case._replace(vT_HdN=case.vT_HdN.contiguous()))


def test_cpu_path_is_the_reference() -> None:
    if ON_GPU:
        pytest.skip("there is a GPU")
    case, _ = draw(4, 20, 12, 2, 16)
    assert torch.equal(block_causal_fp8(*case), block_causal_fp8_reference(*case))


def test_op_traces_without_data() -> None:
    q, scale = torch.empty(9, 3, 16, device="meta", dtype=E4M3), torch.empty(3, device="meta")
    o = block_causal_fp8_op(q, q, q.permute(1, 2, 0), 9, scale, scale)
    assert (o.shape, o.dtype) == (q.shape, torch.bfloat16)


def test_work_counts_both_products_and_every_byte() -> None:
    assert cost(3168, 15312, 40, 128) == (4 * 3168 * 15312 * 5120, 5120 * (3 * 3168 + 2 * 15312))
