"""`everface train teacher`: the same transformer, but bidirectional over a clip. Its scores are the target of stage 2.

Ordinary flow matching with one noise level a clip. Some clips have no audio (audio dropout), so that it can be sampled with
classifier-free guidance.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from everface.core.config import DiTConfig
from everface.networks.transformer.schedule import euler, sigmas
from everface.train.data.clips import Clips
from everface.train.pretrain.flow_matching import train_on_windows
from everface.train.pretrain.noise import draw_noise, shift_level
from everface.train.pretrain.plans import TINY_DIT, Stage1Plan, TeacherPlan
from everface.train.pretrain.window_model import WindowModel
from everface.train.pretrain.windows import TrainingWindow, draw_window


def train_teacher(
    run_dir: Path, clips_dir: Path, plan: TeacherPlan, config: DiTConfig = TINY_DIT, device: str = "cpu", init: Path | None = None
) -> Path:
    """Train and return the path of the averaged weights, run_dir/dit.safetensors. Resumes where run_dir holds a checkpoint."""
    draw = partial(draw_teacher_window, plan, config.block_frames)
    return train_on_windows(run_dir, clips_dir, plan, config, device, init, draw, bidirectional=True)


def draw_teacher_window(
    plan: TeacherPlan, block_frames: int, clips: Clips, batch: int, blocks: int, rng: random.Random, device: str
) -> TrainingWindow:
    """A window at a position of the student's, with one noise level a clip, some of its clips without audio."""
    window = draw_window(clips, batch, blocks, block_frames, rng, device, Stage1Plan(scaffold=0.0, refresh=plan.refresh))
    level_B1 = torch.tensor([[shift_level(rng.random(), plan.shift)] for _ in range(batch)]).to(window.x0_B16Fhw)
    audio_B = torch.tensor([float(rng.random() >= plan.audio_dropout) for _ in range(batch)]).to(window.x0_B16Fhw)
    return replace(window, sigma_Bn=level_B1.expand(-1, blocks), features_BLCF=window.features_BLCF * audio_B[:, None, None, None])


def velocity(model: WindowModel, x_B16Fhw: torch.Tensor, window: TrainingWindow, sigma: float | torch.Tensor, guidance: float = 1.0) -> torch.Tensor:
    """The model's velocity of a clip at one noise level, [B] or a number. With guidance g: unconditional + g (conditional - unconditional)."""
    level_B = torch.as_tensor(sigma, dtype=x_B16Fhw.dtype, device=x_B16Fhw.device).expand(len(x_B16Fhw))
    window = replace(window, sigma_Bn=level_B[:, None].expand(-1, len(window.sink_distances)))
    conditional = model(x_B16Fhw, window).float()
    if guidance == 1.0:
        return conditional
    unconditional = model(x_B16Fhw, replace(window, features_BLCF=torch.zeros_like(window.features_BLCF))).float()
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def sample(
    model: WindowModel, window: TrainingWindow, steps: int, generator: torch.Generator, correlation: float = 0.0, guidance: float = 1.0,
    shift: float = 3.0,
) -> torch.Tensor:  # fmt: skip
    """A clip from noise by Euler steps: latents like window.x0_B16Fhw, of which only the shape is used."""
    x = draw_noise(window.x0_B16Fhw.shape, generator, correlation).to(window.x0_B16Fhw)
    levels = sigmas(steps, shift)
    for now, following in pairwise(levels):
        x = euler(x, velocity(model, x, window, now, guidance), now, following)
    return x
