"""Blocks a million and ten million blocks into a stream (five and fifty-five days): the same as a fresh computation there, and as one near the start."""

from __future__ import annotations

import pytest
import torch

from everface.kernels.fused.norm_rope import rotate
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.framepack import MOTION_GROUPS
from everface.networks.transformer.rope import Rope, frames_table

FAR = (1_000_000, 10_000_000)
NEAR = 12  # a block behind which the reference rolls ahead of the stream, and a multiple of the ring's blocks, as those of FAR are
DISTANCE = 10  # of the reference, in latent frames
GRID, WIDTH = (4, 8), 64


@pytest.mark.parametrize("far", FAR)
def test_places_in_the_ring_are_those_near_the_start(dit: DiT, far: int) -> None:
    for n in range(9):
        a, b = (dit.block_position(GRID, first + n, DISTANCE) for first in (NEAR, far))
        assert (b.start, b.used) == (a.start, a.used)
        assert int(b.first) - int(a.first) == int(b.sink) - int(a.sink) == 3 * (far - NEAR)
    running = dit.block_position(GRID, far, DISTANCE)
    assert (int(running.first), int(running.sink)) == (3 * far, 3 * far + DISTANCE)


@pytest.mark.parametrize("far", FAR)
def test_a_running_table_is_a_fresh_one(far: int) -> None:
    rope, fresh = Rope(3, GRID, WIDTH, MOTION_GROUPS), frames_table(3 * far, 3, GRID, WIDTH)
    for position in (3 * far, torch.tensor(3 * far)):  # the tensor as a captured forward has it
        torch.testing.assert_close(rope.block(position), fresh, atol=0, rtol=0)


@pytest.mark.parametrize("far", FAR)
def test_scores_between_blocks_are_those_near_the_start(far: int) -> None:
    """Attention sees rotated queries and keys only through their products."""
    rope, generator = Rope(3, GRID, WIDTH, MOTION_GROUPS), torch.Generator().manual_seed(1)
    tokens = 3 * GRID[0] * GRID[1]
    q_THd, k_THd = (torch.randn(tokens, 2, WIDTH, generator=generator) for _ in range(2))
    for behind in range(4):
        scores = []
        for first in (3 * NEAR, 3 * far):
            q, k = rotate(q_THd, rope.block(first)), rotate(k_THd, rope.block(first - 3 * behind))
            scores.append(torch.einsum("thd,shd->hts", q, k))
        torch.testing.assert_close(scores[1], scores[0], atol=1e-4, rtol=0)
