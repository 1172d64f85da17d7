"""Windows of clips: the training batches of teacher and stage 1.

In stage 1 the noise levels are mostly those of the four-step sampler. Half of the clips have one level for all blocks, which is what
timestep forcing shows the model, and half have one for each block; the plan sets the shares. A scaffold stands in for the noisy history of
stage 2: the motion frames are the true past, each noised on its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

from everface.core.config import LATENT_FRAMES
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.transformer.rope import SINK_TIME
from everface.networks.transformer.schedule import sigmas
from everface.train.data.clips import STILL_LATENTS, Clips
from everface.train.pretrain.noise import draw_position, draw_sigmas
from everface.train.pretrain.plans import OWN_LEAST, Stage1Plan

MOTION_LATENTS = 19
REFRESH_BLOCKS = 4  # the adaptive sink is refreshed before this block
REFRESHED_SHARE = 0.6  # share of the windows after it with a moving latent as reference


@dataclass(frozen=True)
class TrainingWindow:
    """One training batch: B clips of n blocks, F latent frames in all, at one position in their streams."""

    x0_B16Fhw: torch.Tensor
    sigma_Bn: torch.Tensor
    reference_B16_1hw: torch.Tensor
    motion_B16Thw: torch.Tensor
    features_BLCF: torch.Tensor  # 5 past video frames, then 12 a block of three latents
    first_frame: int
    sink_distances: tuple[int, ...]  # of each block
    past_B16Fhw: torch.Tensor | None = None  # ablation: the clip at `past_sigma`, which blocks see of those before them
    past_sigma: float = 0.0
    own_B: torch.Tensor | None = None  # clips that are noised by the model's own steps from noise down to their level, in place of the truth that is noised
    levels: tuple[float, ...] = ()  # of the sampler that does those steps

    def of(self, clips: torch.Tensor, sigma: float) -> TrainingWindow:
        """Of some of the clips, all at one level."""
        held = {name: getattr(self, name)[clips] for name in ("x0_B16Fhw", "reference_B16_1hw", "motion_B16Thw", "features_BLCF")}
        return replace(self, sigma_Bn=torch.full_like(self.sigma_Bn[clips], sigma), own_B=None, **held)


def draw_window(
    clips: Clips, batch: int, blocks: int, block_frames: int, rng: random.Random, device: str, plan: Stage1Plan
) -> TrainingWindow:
    """A random batch, at the start of a stream, within minutes of it or far beyond.

    The reference is the still image or, beyond the first blocks, often a moving latent of the same character, as with the adaptive
    attention sink.
    """
    rows = rng.sample(range(len(clips)), batch)
    frames = blocks * block_frames
    moving = clips.latents_N16Thw.shape[2] - STILL_LATENTS
    offset = rng.randint(0, moving - frames)
    z = clips.latents_N16Thw[rows].to(device, torch.float32)
    features = features_of(clips.features_NLCF[rows], offset, frames, device)
    first = block_frames * draw_position(rng, plan.start_share, plan.far_share, plan.max_block)
    reference = z[:, :, :1]
    if first >= REFRESH_BLOCKS * block_frames and rng.random() < REFRESHED_SHARE and plan.refresh:
        start = rng.randint(STILL_LATENTS, moving + 1)
        reference = z[:, :, start : start + 1]
    motion = still_motion(z)
    begin = STILL_LATENTS + offset
    if first and rng.random() < plan.scaffold:
        motion = noised_past(z[:, :, :begin], rng)
    x0, sigma = z[:, :, begin : begin + frames], draw_sigmas(batch, blocks, rng, plan).to(device)
    distances = tuple(rng.randint(plan.min_sink_distance, plan.max_sink_distance) for _ in range(blocks))
    if not plan.rolling:
        distances = tuple(SINK_TIME - first - block_frames * b for b in range(blocks))
    window = TrainingWindow(x0, sigma, reference, motion, features, first, distances)
    if plan.own_share:
        window = replace(window, own_B=draw_own(sigma.cpu(), rng, plan).to(device), levels=sigmas(plan.steps))
    if plan.history == "own":
        return window
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(rng.getrandbits(63))).to(x0)
    return replace(window, past_B16Fhw=torch.lerp(x0, noise, plan.past_sigma), past_sigma=plan.past_sigma)


def draw_own(sigma_Bn: torch.Tensor, rng: random.Random, plan: Stage1Plan) -> torch.Tensor:
    """Which clips [B] come to their level by the model's own steps: of those with one of the sampler's levels for all blocks, `own_share`."""
    drawn = torch.tensor([rng.random() < plan.own_share for _ in range(len(sigma_Bn))])
    levels = torch.tensor([level for level in sigmas(plan.steps) if OWN_LEAST <= level < 1])
    return drawn & torch.isclose(sigma_Bn[:, :1], levels).any(1) & (sigma_Bn == sigma_Bn[:, :1]).all(1)


def features_of(features: torch.Tensor, offset: int, frames: int, device: str) -> torch.Tensor:
    """Audio features [..., 5 + 4 frames] of so many latent frames from `offset` on, float32."""
    stride = LATENT_FRAMES
    return features[..., stride * offset : stride * (offset + frames) + PAST_FRAMES].to(device, torch.float32)


def still_motion(z: torch.Tensor) -> torch.Tensor:
    """Motion frames [..., 19, h, w] of a stream that has just begun: the still image, from a clip's latents [..., T, h, w]."""
    second = z[..., 1:2, :, :]
    return torch.cat([z[..., :2, :, :], second.expand(*second.shape[:-3], MOTION_LATENTS - 2, -1, -1)], dim=-3)


def noised_past(past_B16Thw: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The scaffold: the last 19 latent frames, the first repeated where there are fewer, each with a noise level of its own."""
    missing = max(0, MOTION_LATENTS - past_B16Thw.shape[2])
    z = torch.cat([past_B16Thw[:, :, :1].expand(-1, -1, missing, -1, -1), past_B16Thw], dim=2)[:, :, -MOTION_LATENTS:]
    g = torch.Generator(z.device).manual_seed(rng.getrandbits(63))
    sigma = torch.rand(len(z), 1, MOTION_LATENTS, 1, 1, generator=g, device=z.device).to(z)
    return (1 - sigma) * z + sigma * torch.randn(z.shape, generator=g, device=z.device).to(z)
