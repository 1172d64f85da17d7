"""Ring and sink attention over codes: the kernel under the interpreter (or on a GPU) against its reference and the exact answer."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    import tests.kernels.interpreter  # noqa: F401  the interpreter, mended

from everface.core.block import kv_pair
from everface.kernels.attention.block_causal import block_causal_reference
from everface.kernels.attention.block_causal_fp8 import (
    block_causal_fp8,
    block_causal_fp8_op,
    block_causal_fp8_reference,
    launch_block_causal_fp8,
    work,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
E4M3 = torch.float8_e4m3fn
ON_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(ON_GPU and torch.cuda.get_device_capability() < (9, 0), reason="from sm_90 on")


class Case(NamedTuple):
    """Arguments of the op. Slots that are not used hold NaN, and so does the padding of the rows of values."""

    q_THd: torch.Tensor
    ring_k_SHd: torch.Tensor
    ring_vT_HdS: torch.Tensor
    used: int
    sink_k_CHd: torch.Tensor
    sink_vT_HdC: torch.Tensor
    qk_scale_H: torch.Tensor
    v_scale_H: torch.Tensor


def drawn(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def held(x_SHd: torch.Tensor) -> torch.Tensor:
    """The same codes [H, d, S] as a cache holds values, the padding NaN."""
    slots, heads, d = x_SHd.shape
    _, v = kv_pair((1, slots, heads, d), torch.bfloat16, x_SHd.device, E4M3)
    whole = torch.as_strided(v, (v.untyped_storage().nbytes(),), (1,))
    whole.fill_(float("nan"))
    v[0].copy_(x_SHd)
    return v[0].permute(1, 2, 0)


def draw(tokens: int, capacity: int, used: int, sink: int, heads: int, d: int) -> tuple[Case, torch.Tensor]:
    """Standard normals in codes, a scale a head for each; and the exact attention over the numbers before they were coded."""
    scale_q, scale_k, scale_v = (2.0 ** -torch.arange(n, n + heads, device=DEVICE).float() for n in (4, 5, 6))
    q, ring_k, ring_v, sink_k, sink_v = (
        drawn(n, heads, d, seed=s) for s, n in enumerate((tokens, capacity, capacity, sink, sink))
    )  # fmt: skip
    exact = block_causal_reference(q.double(), ring_k.double(), ring_v.double(), used, sink_k.double(), sink_v.double())
    ring_k[used:] = ring_v[used:] = float("nan")
    codes = [(x / scale[:, None]).to(E4M3) for x, scale in ((q, scale_q), (ring_k, scale_k), (sink_k, scale_k))]
    ring_vT, sink_vT = (held((x / scale_v[:, None]).to(E4M3)) for x in (ring_v, sink_v))
    return Case(codes[0], codes[1], ring_vT, used, codes[2], sink_vT, scale_q * scale_k, scale_v), exact


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize(
    ("tokens", "capacity", "used", "sink", "heads", "d"),
    [
        (67, 272, 272, 150, 1, 128),  # every range ragged
        (64, 128, 128, 128, 2, 64),  # nothing ragged
        (33, 120, 40, 17, 2, 48),  # the ring not yet full, no row of values a multiple of 16 long
        (5, 40, 5, 1, 3, 48),  # the first block
        (330, 70, 70, 33, 2, 16),  # more tiles than programs: each loops
        (65, 64, 64, 0, 1, 128),  # no sink
    ],
)
def test_kernel_equals_reference(tokens: int, capacity: int, used: int, sink: int, heads: int, d: int) -> None:
    """They code weights against other maxima, and differ by that: 2 % of a random answer, which is an average of noise."""
    case, exact = draw(tokens, capacity, used, sink, heads, d)
    got, want = launch_block_causal_fp8(*case), block_causal_fp8_reference(*case)
    assert got.shape == want.shape == case.q_THd.shape and got.dtype == want.dtype == torch.bfloat16
    assert relative(got, want) < 0.03
    assert relative(got, exact) < 0.1 and relative(want, exact) < 0.1  # three bits of four roundings: docs/numerics.md


def test_only_codes_are_lost() -> None:
    """Against exact attention over the very codes: what is left is how weights are coded."""
    case, _ = draw(40, 300, 300, 90, 2, 64)
    k, v = (torch.cat(pair) for pair in ((case.ring_k_SHd.double(), case.sink_k_CHd.double()), (
        case.ring_vT_HdS.permute(2, 0, 1).double(), case.sink_vT_HdC.permute(2, 0, 1).double())))  # fmt: skip
    q = case.q_THd.double() * case.qk_scale_H[:, None].double()
    exact = block_causal_reference(q, k, v, len(k), k[:0], v[:0]) * case.v_scale_H[:, None]
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
    case = Case((q / q_scale).to(E4M3), k.to(E4M3), held(v.to(E4M3)), keys, k[:0].to(E4M3), held(v[:0].to(E4M3)), q_scale, one)
    for got in (launch_block_causal_fp8(*case), block_causal_fp8_reference(*case)):
        assert got.float().abs().max() < 0.02, got


def test_scales_are_those_of_the_head() -> None:
    case, _ = draw(9, 48, 48, 16, 3, 32)
    doubled = case._replace(v_scale_H=case.v_scale_H * torch.tensor([1.0, 2.0, 4.0], device=DEVICE))
    plain, more = launch_block_causal_fp8(*case).float(), launch_block_causal_fp8(*doubled).float()
    assert torch.equal(more, plain * torch.tensor([1.0, 2.0, 4.0], device=DEVICE)[:, None])
    flat = case._replace(qk_scale_H=torch.full((3,), 2.0**-40, device=DEVICE))  # every key weighs the same
    mean = torch.cat((case.ring_vT_HdS.float(), case.sink_vT_HdC.float()), -1).mean(-1) * case.v_scale_H[:, None]
    torch.testing.assert_close(launch_block_causal_fp8(*flat).float(), mean.expand(9, -1, -1), rtol=2**-7, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("used", [12672, 3168])
def test_kernel_equals_reference_at_14b(used: int) -> None:
    """704x384: sums over 15,312 keys in the precision of the tensor cores."""
    case, exact = draw(3168, 12672, used, 2640, 2, 128)
    got = launch_block_causal_fp8(*case)
    assert relative(got, block_causal_fp8_reference(*case)) < 0.03
    assert relative(got, exact) < 0.1


def test_wrong_arguments_are_refused() -> None:
    case, _ = draw(4, 16, 16, 4, 2, 16)
    with pytest.raises(ValueError, match="17 slots used of a ring of 16"):
        launch_block_causal_fp8(*case._replace(used=17))
    with pytest.raises(ValueError, match="side by side"):
        launch_block_causal_fp8(*case._replace(ring_vT_HdS=case.ring_k_SHd.permute(1, 2, 0)))
    with pytest.raises(ValueError, match="16 bytes"):
        launch_block_causal_fp8(*case._replace(sink_vT_HdC=case.sink_vT_HdC.contiguous()))


def test_cpu_path_is_the_reference() -> None:
    if ON_GPU:
        pytest.skip("there is a GPU")
    case, _ = draw(4, 16, 8, 4, 2, 16)
    assert torch.equal(block_causal_fp8(*case), block_causal_fp8_reference(*case))


def test_op_traces_without_data() -> None:
    q, scale = torch.empty(9, 3, 16, device="meta", dtype=E4M3), torch.empty(3, device="meta")
    o = block_causal_fp8_op(q, q, q.permute(1, 2, 0), 9, q, q.permute(1, 2, 0), scale, scale)
    assert (o.shape, o.dtype) == (q.shape, torch.bfloat16)


def test_work_counts_both_products_and_every_byte() -> None:
    assert work(3168, 15312, 40, 128) == (4 * 3168 * 15312 * 5120, 5120 * (3 * 3168 + 2 * 15312))
