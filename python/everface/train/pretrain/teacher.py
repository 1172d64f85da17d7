"""The teacher: the same transformer, but every block of a clip sees all the others. Stage 2 takes its scores for the truth.

Ordinary flow matching: one noise level a clip, uniform and then shifted; some clips hear nothing, so that the score can be guided.

    everface train teacher RUN --clips DIR --minutes 40
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from everface.core.config import DiTConfig
from everface.model.schedule import euler, sigmas
from everface.train.data.clips import Clips
from everface.train.pretrain.flow_matching import learn
from everface.train.pretrain.plans import TINY, Stage1, Teacher
from everface.train.pretrain.windows import Window, WindowModel, draw_noise, draw_window, shifted

PLACES = Stage1(scaffold=0.0)  # a teacher stands where students stand


def train_teacher(
    run_dir: Path, clips_dir: Path, plan: Teacher, config: DiTConfig = TINY, device: str = "cpu", init: Path | None = None
) -> Path:
    """Train and return the path of the EMA weights, `run_dir/dit.safetensors`. Resumes from run_dir when it holds a checkpoint."""
    return learn(run_dir, clips_dir, plan, config, device, init, partial(draw_clip, plan, config.block_frames), full=True)


def draw_clip(plan: Teacher, block_frames: int, clips: Clips, batch: int, blocks: int, rng: random.Random, device: str) -> Window:
    """A window at one noise level a clip; some of its clips are deaf."""
    window = draw_window(clips, batch, blocks, block_frames, rng, device, PLACES)
    level_B1 = torch.tensor([[shifted(rng.random(), plan.shift)] for _ in range(batch)]).to(window.x0_B16Fhw)
    hears_B = torch.tensor([float(rng.random() >= plan.audio_drop) for _ in range(batch)]).to(window.x0_B16Fhw)
    return replace(window, sigma_Bn=level_B1.expand(-1, blocks), features_BLCF=window.features_BLCF * hears_B[:, None, None, None])


def velocity(model: WindowModel, x_B16Fhw: torch.Tensor, window: Window, sigma: float | torch.Tensor, guidance: float = 1.0) -> torch.Tensor:
    """The model's velocity of a clip that is all at one noise level, [B] or one number. With guidance g: deaf + g (hearing - deaf)."""
    level_B = torch.as_tensor(sigma, dtype=x_B16Fhw.dtype, device=x_B16Fhw.device).expand(len(x_B16Fhw))
    window = replace(window, sigma_Bn=level_B[:, None].expand(-1, len(window.sink_distances)))
    v = model(x_B16Fhw, window).float()
    if guidance == 1.0:
        return v
    deaf = model(x_B16Fhw, replace(window, features_BLCF=torch.zeros_like(window.features_BLCF))).float()
    return deaf + guidance * (v - deaf)


@torch.no_grad()
def sample(
    model: WindowModel, window: Window, steps: int, generator: torch.Generator, correlation: float = 0.0, guidance: float = 1.0,
    shift: float = 3.0,
) -> torch.Tensor:  # fmt: skip
    """A clip out of noise by many Euler steps: latents like window.x0_B16Fhw, of which nothing but the shape is read."""
    x = draw_noise(window.x0_B16Fhw.shape, generator, correlation).to(window.x0_B16Fhw)
    levels = sigmas(steps, shift)
    for now, following in pairwise(levels):
        x = euler(x, velocity(model, x, window, now, guidance), now, following)
    return x
