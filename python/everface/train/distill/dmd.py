"""Distribution matching: the gradient that moves samples towards the teacher's distribution, and the loss of the fake score.

Samples are noised to a level, and both teacher and fake score predict the clean clip from them. The fake score models the student's samples,
the teacher the truth; where their predictions differ, the student is wrong (DMD2, arXiv 2405.14867):

    d = (fake_x0 - real_x0) / mean |x0 - real_x0|            dL/dx0 = d / number of elements
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from everface.train.distill.plans import Stage2Plan
from everface.train.pretrain.noise import draw_noise, shift_level
from everface.train.pretrain.teacher import velocity
from everface.train.pretrain.window_model import WindowModel
from everface.train.pretrain.windows import TrainingWindow

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(noised x_B..., sigma_B) -> velocity, noise - clean."""
MIN_NORMALIZER = 1e-3


@torch.no_grad()
def dmd_gradient(x0_B: torch.Tensor, real: Velocity, fake: Velocity, sigma_B: torch.Tensor, noise_B: torch.Tensor) -> torch.Tensor:
    """d above, of the shape of x0 [B, ...]; descent subtracts it. Each sample has its own normalizer."""
    sigma = sigma_B.view(-1, *[1] * (x0_B.dim() - 1)).to(x0_B)
    x = (1 - sigma) * x0_B + sigma * noise_B
    real_x0, fake_x0 = (x - sigma * v(x, sigma_B) for v in (real, fake))
    normalizer = (x0_B - real_x0).abs().flatten(1).mean(1).clamp(min=MIN_NORMALIZER).view(sigma.shape)
    return (fake_x0 - real_x0) / normalizer


def fake_loss(fake: WindowModel, x0_B16Fhw: torch.Tensor, window: TrainingWindow, sigma: float, noise: torch.Tensor) -> torch.Tensor:
    """Flow matching on the student's samples, at one noise level."""
    v = velocity(fake, (1 - sigma) * x0_B16Fhw + sigma * noise, window, sigma)
    return (v - (noise - x0_B16Fhw)).square().mean()


def draw_level(plan: Stage2Plan, rng: random.Random) -> float:
    """The level at which scores are compared: uniform, shifted, within min_sigma..max_sigma."""
    return min(max(shift_level(rng.random(), plan.shift), plan.min_sigma), plan.max_sigma)


def score_noise(x0: torch.Tensor, plan: Stage2Plan, rng: random.Random) -> torch.Tensor:
    return draw_noise(x0.shape, torch.Generator().manual_seed(rng.getrandbits(63)), plan.noise_correlation).to(x0)
