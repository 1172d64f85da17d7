"""Attention over sink and ring: the kernel under the interpreter (or on a GPU) against its reference, and the op around both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, attention_tolerance

from everface.kernels.attention.block_causal import (
    block_causal_reference,
    cost,
    group_heads,
    keys_read,
    launch_block_causal,
    mask_of,
)
from everface.kernels.attention.self_attention import block_causal, block_causal_op
from everface.kernels.launch import runs_triton

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]


def draw(tokens: int, slots: int, used: int, heads: int, d: int, dtype: torch.dtype) -> Case:
    """Arguments of the op; slots that are not used hold NaN."""
    random = torch.Generator().manual_seed(tokens + used + d)
    q, k, v = (torch.randn(n, heads, d, generator=random).to(DEVICE, dtype) for n in (tokens, slots, slots))
    k[used:] = v[used:] = float("nan")
    return q, k, v, used


def error(o: torch.Tensor, case: Case) -> float:
    """Largest error against float64, relative to the largest output."""
    q, k, v, used = case
    exact = block_causal_reference(q.double(), k.double(), v.double(), used)
    return float((o.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(
    ("tokens", "slots", "used", "heads", "d", "dtype"),
    [
        (67, 230, 230, 1, 128, torch.bfloat16),  # queries and keys ragged
        (64, 192, 192, 2, 64, torch.bfloat16),  # nothing ragged
        (33, 137, 57, 2, 48, torch.bfloat16),  # the ring not yet full, less than a tile
        (5, 41, 6, 3, 48, torch.float32),  # the first block
        (130, 103, 103, 2, 48, torch.float32),  # more tiles than programs: each loops
        (65, 64, 64, 1, 128, torch.float16),  # a single tile
    ],
)
@pytest.mark.parametrize("use_descriptors", [True, False], ids=["descriptors", "pointers"])
def test_kernel_equals_reference(
    tokens: int, slots: int, used: int, heads: int, d: int, dtype: torch.dtype, use_descriptors: bool
) -> None:
    case = draw(tokens, slots, used, heads, d, dtype)
    o = launch_block_causal(*case, use_descriptors=use_descriptors)
    assert o.shape == case[0].shape and o.dtype == dtype
    assert error(o, case) <= attention_tolerance(dtype, d)


RANGES = [  # of used slots, a head
    [(0, 40), (0, 0), (0, 0)],  # the sink
    [(40, 0), (150, 80), (40, 20)],  # the newest frames, at both ends of the ring
    [(0, 40), (40, 190), (0, 0)],  # all
    [(0, 0), (0, 0), (229, 1)],  # a single slot
]


def attend_to_ranges(case: Case, ranges: torch.Tensor) -> torch.Tensor:
    """In float64, a head at a time."""
    q, k, v = (x.double() for x in case[:3])
    heads = []
    for head, spans in enumerate(ranges.tolist()):
        slots = [slot for first, count in spans for slot in range(first, first + count)]
        heads.append(block_causal_reference(q[:, head, None], k[slots, head, None], v[slots, head, None], len(slots)))
    return torch.cat(heads, 1)


@pytest.mark.parametrize(("d", "dtype"), [(128, torch.bfloat16), (48, torch.float32)])
@pytest.mark.parametrize("how", ["descriptors", "pointers", "reference", "mask"])
def test_each_head_reads_its_own_ranges(d: int, dtype: torch.dtype, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no range has is far too large to be attended to unnoticed."""
    ranges = torch.tensor(RANGES, dtype=torch.int32, device=DEVICE)
    q, k, v, used = case = draw(67, 230, 230, len(RANGES), d, dtype)
    v.masked_fill_(~mask_of(ranges, used).T[..., None], 1e4)
    want = attend_to_ranges(case, ranges)
    if how == "reference":
        o = block_causal(q, k, v, used, ranges)
    elif how == "mask":
        mask = mask_of(ranges, used)[:, None]
        o = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), attn_mask=mask).transpose(0, 1)
    else:
        o = launch_block_causal(q, k, v, used, ranges, use_descriptors=how == "descriptors")
    assert float((o.double() - want).abs().max() / want.abs().max()) <= attention_tolerance(dtype, d)


def test_heads_with_the_same_ranges_are_computed_together() -> None:
    ranges = torch.tensor([RANGES[0], RANGES[2], RANGES[0][::-1]], dtype=torch.int32)
    assert group_heads(ranges) == {((0, 40),): [0, 2], ((0, 40), (40, 190)): [1]}
    assert keys_read(230, 3, ranges) == (40 + 230 + 40) / 3 and keys_read(230, 3, None) == 230


def test_the_order_of_the_slots_does_not_matter() -> None:
    """A ring that has wrapped holds the same keys, rolled."""
    q, k, v, used = draw(4, 69, 69, 1, 64, torch.float32)
    plain = launch_block_causal(q, k, v, used)
    rolled = launch_block_causal(q, k.roll(25, 0), v.roll(25, 0), used)
    torch.testing.assert_close(plain, rolled, rtol=1e-5, atol=1e-6)


def test_packed_queries_and_a_layer_of_a_cache_are_read_in_place() -> None:
    q, k, v, used = case = draw(6, 48, 41, 2, 16, torch.float32)
    qkv = torch.stack((q, q + 9, q - 9), 1)  # token stride is three times the width
    cache = torch.full((3, 48, 2, 16), float("nan"), device=DEVICE)
    cache[1] = k
    o = launch_block_causal(qkv[:, 0], cache[1], v, used)
    assert error(o, case) <= attention_tolerance(torch.float32, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_equals_reference_at_14b(dtype: torch.dtype) -> None:
    """704x384 in steady state, and a ring that holds one block only."""
    for used in (15312, 5808):
        case = draw(3168, 15312, used, 4, 128, dtype)
        assert error(launch_block_causal(*case), case) <= attention_tolerance(dtype, 128)


def test_wrong_arguments_are_refused() -> None:
    q, k, v, _ = draw(4, 8, 8, 2, 16, torch.float32)
    with pytest.raises(ValueError, match="9 slots used of 8"):
        launch_block_causal(q, k, v, 9)
    with pytest.raises(ValueError, match="side by side"):
        launch_block_causal(q.transpose(0, 1).contiguous().transpose(0, 1), k, v, 8)
    with pytest.raises(ValueError, match="ranges of keys are contiguous int32"):
        launch_block_causal(q, k, v, 8, torch.tensor([[[0, 8]], [[0, 8]]], device=DEVICE))


def test_cpu_path_is_the_reference_and_differentiable() -> None:
    q, k, v = (torch.randn(4, 2, 8, requires_grad=True) for _ in range(3))
    assert not runs_triton(q, k, v)
    o = block_causal(q, k, v, 3)
    assert torch.equal(o, block_causal_reference(q, k, v, 3))
    o.sum().backward()
    assert all(x.grad is not None for x in (q, k, v))


def test_op_traces_without_data() -> None:
    q = torch.empty(9, 3, 16, device="meta", dtype=torch.bfloat16)
    o = block_causal_op(q, q, q, 9)
    assert (o.shape, o.dtype) == (q.shape, q.dtype)


def test_work_counts_both_products_and_every_byte() -> None:
    done = cost(3168, 15312, 40, 128, 2)
    assert done == (4 * 3168 * 15312 * 5120, 2 * 5120 * 2 * (3168 + 15312))
    assert 0.99e12 < done.flops < 1.0e12
