"""Random noise levels, correlated noise and positions in a stream."""

from __future__ import annotations

import math
import random
from bisect import bisect
from itertools import accumulate

import torch

from everface.networks.transformer.schedule import sigmas
from everface.train.pretrain.plans import Stage1Plan

LEVEL_ODDS = (0.26, 0.32, 0.38, 0.04)  # of the levels of the four-step sampler
LAST_ODDS = 0.04  # of the last level of another sampler; the others share the rest evenly
NEAR_BLOCKS = 200  # positions up to here are uniform, those beyond uniform in their logarithm


def draw_position(rng: random.Random, start_share: float, far_share: float, max_block: int) -> int:
    """A block in a stream: 0 for `start_share` of the draws, from 200 up to `max_block` for `far_share`, else in between."""
    u = rng.random()
    if u < start_share:
        return 0
    if u < 1 - far_share or max_block <= NEAR_BLOCKS:
        return rng.randint(1, min(NEAR_BLOCKS, max_block))
    return int(math.exp(rng.uniform(math.log(NEAR_BLOCKS), math.log(max_block))))


def draw_sigmas(batch: int, blocks: int, rng: random.Random, plan: Stage1Plan) -> torch.Tensor:
    """Noise levels [batch, blocks]: `sampler_levels` of them the sampler's own, the rest any; `shared_level` of the clips have one.

    The levels that clips share are spread evenly over a batch, as losses differ more from level to level than from clip to clip.
    """
    levels = sigmas(plan.steps)[:-1]
    share = (1 - LAST_ODDS) / max(plan.steps - 1, 1)
    odds = LEVEL_ODDS if plan.steps == len(LEVEL_ODDS) else (*[share] * (plan.steps - 1), LAST_ODDS)
    up_to = list(accumulate(odds[:-1]))

    def level(u: float) -> float:
        return levels[bisect(up_to, u)] if rng.random() < plan.sampler_levels else shift_level(rng.random(), plan.shift)

    rows, offset = [], rng.random()
    for place in rng.sample(range(batch), batch):
        shared = level((place + offset) / batch)
        rows.append([shared] * blocks if rng.random() < plan.shared_level else [level(rng.random()) for _ in range(blocks)])
    return torch.tensor(rows)


def shift_level(u: float, shift: float) -> float:
    """A level of 0..1 moved towards noise (the flow shift of Wan)."""
    return shift * u / (1 + (shift - 1) * u)


def draw_noise(shape: torch.Size, generator: torch.Generator, correlation: float) -> torch.Tensor:
    """Normal noise [B, C, F, h, w] in which each frame is correlated with the one before it, as the runtime draws it. Every frame
    alone is N(0, 1). Drawn on the generator's device."""
    noise = torch.randn(shape, generator=generator, device=generator.device)
    for f in range(1, shape[2] if correlation else 0):
        noise[:, :, f] = correlation * noise[:, :, f - 1] + (1 - correlation**2) ** 0.5 * noise[:, :, f]
    return noise
