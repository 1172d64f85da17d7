"""Ring and sink attention: the kernel under the interpreter (or on a GPU) against its reference, and the op around both."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    import tests.kernels.interpreter  # noqa: F401  the interpreter, mended

from everface.kernels.attention.block_causal import (
    block_causal,
    block_causal_op,
    block_causal_reference,
    launch_block_causal,
    work,
)
from everface.kernels.launch import runs_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor, torch.Tensor]


def draw(tokens: int, capacity: int, used: int, sink: int, heads: int, d: int, dtype: torch.dtype) -> Case:
    """Arguments of the op; slots of the ring that are not used hold NaN."""
    random = torch.Generator().manual_seed(tokens + used + d)
    q, ring_k, ring_v, sink_k, sink_v = (
        torch.randn(n, heads, d, generator=random).to(DEVICE, dtype) for n in (tokens, capacity, capacity, sink, sink)
    )
    ring_k[used:] = ring_v[used:] = float("nan")
    return q, ring_k, ring_v, used, sink_k, sink_v


def error(o: torch.Tensor, case: Case) -> float:
    """Largest error against float64, in parts of the largest answer."""
    q, ring_k, ring_v, used, sink_k, sink_v = case
    exact = block_causal_reference(q.double(), ring_k.double(), ring_v.double(), used, sink_k.double(), sink_v.double())
    return float((o.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(
    ("tokens", "capacity", "used", "sink", "heads", "d", "dtype"),
    [
        (67, 160, 160, 70, 1, 128, torch.bfloat16),  # every range ragged
        (64, 128, 128, 64, 2, 64, torch.bfloat16),  # nothing ragged
        (33, 120, 40, 17, 2, 48, torch.bfloat16),  # the ring not yet full
        (5, 40, 5, 1, 3, 48, torch.float32),  # the first block
        (130, 70, 70, 33, 2, 48, torch.float32),  # more tiles than programs: each loops
        (65, 64, 64, 0, 1, 128, torch.float16),  # no sink
    ],
)
@pytest.mark.parametrize("described", [True, False], ids=["descriptors", "pointers"])
def test_kernel_equals_reference(
    tokens: int, capacity: int, used: int, sink: int, heads: int, d: int, dtype: torch.dtype, described: bool
) -> None:
    case = draw(tokens, capacity, used, sink, heads, d, dtype)
    o = launch_block_causal(*case, described)
    assert o.shape == case[0].shape and o.dtype == dtype
    assert error(o, case) <= TOLERANCE[dtype]


def test_order_of_the_slots_carries_no_meaning() -> None:
    """A ring that has wrapped is the same keys, rolled."""
    q, ring_k, ring_v, used, sink_k, sink_v = draw(4, 60, 60, 9, 1, 64, torch.float32)
    plain = launch_block_causal(q, ring_k, ring_v, used, sink_k, sink_v)
    rolled = launch_block_causal(q, ring_k.roll(25, 0), ring_v.roll(25, 0), used, sink_k, sink_v)
    torch.testing.assert_close(plain, rolled, rtol=1e-5, atol=1e-6)


def test_packed_queries_and_a_layer_of_a_cache_are_read_in_place() -> None:
    q, ring_k, ring_v, used, sink_k, sink_v = case = draw(6, 40, 33, 8, 2, 16, torch.float32)
    qkv = torch.stack((q, q + 9, q - 9), 1)  # token stride is three times the width
    cache = torch.full((3, 40, 2, 16), float("nan"), device=DEVICE)
    cache[1] = ring_k
    o = launch_block_causal(qkv[:, 0], cache[1], ring_v, used, sink_k, sink_v)
    assert error(o, case) <= TOLERANCE[torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_equals_reference_at_14b(dtype: torch.dtype) -> None:
    """704x384 in steady state, and a ring that holds one block only."""
    for used in (12672, 3168):
        case = draw(3168, 12672, used, 2640, 4, 128, dtype)
        assert error(launch_block_causal(*case), case) <= TOLERANCE[dtype]


def test_wrong_arguments_are_refused() -> None:
    q, ring_k, ring_v, _, sink_k, sink_v = draw(4, 8, 8, 4, 2, 16, torch.float32)
    with pytest.raises(ValueError, match="9 slots used of a ring of 8"):
        launch_block_causal(q, ring_k, ring_v, 9, sink_k, sink_v)
    with pytest.raises(ValueError, match="side by side"):
        launch_block_causal(q.transpose(0, 1).contiguous().transpose(0, 1), ring_k, ring_v, 8, sink_k, sink_v)


def test_cpu_path_is_the_reference_and_differentiable() -> None:
    q, k, v = (torch.randn(4, 2, 8, requires_grad=True) for _ in range(3))
    assert not runs_triton(q, k, v)
    o = block_causal(q, k, v, 3, k, v)
    assert torch.equal(o, block_causal_reference(q, k, v, 3, k, v))
    o.sum().backward()
    assert all(x.grad is not None for x in (q, k, v))


def test_op_traces_without_data() -> None:
    q = torch.empty(9, 3, 16, device="meta", dtype=torch.bfloat16)
    o = block_causal_op(q, q, q, 9, q, q)
    assert (o.shape, o.dtype) == (q.shape, q.dtype)


def test_work_counts_both_products_and_every_byte() -> None:
    done = work(3168, 15312, 40, 128, 2)
    assert done == (4 * 3168 * 15312 * 5120, 2 * 5120 * 2 * (3168 + 15312))
    assert 0.99e12 < done.flops < 1.0e12
