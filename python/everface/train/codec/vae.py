"""`everface train vae`: trains a video VAE, the Wan 2.1 architecture at small width, on drawn characters.

First single frames, which are cheap and teach space, then crops of 21 and 41 frames, which teach time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from everface.core.config import VAEConfig
from everface.networks.video.vae import VAE
from everface.train.codec.crops import back_and_forth, draw_crops, draw_videos
from everface.train.codec.loss import codec_loss, pixel_weight, reconstruction_quality
from everface.train.codec.model import TINY_VAE, deepen, new_vae
from everface.train.codec.training import train_codec, write_vae
from everface.train.data.clips import STILL_FRAMES
from everface.train.data.drawn import clip_generator
from everface.train.engine.ema import Ema
from everface.train.engine.plan import RunPlan
from everface.train.engine.precision import autocast
from everface.train.synthetic.characters import from_uint8
from everface.weights.files import open_file
from everface.weights.load import load_into

MEASURED_FRAMES = STILL_FRAMES + 64
STATISTICS_CLIPS = 150  # that the mean and std of the latents are measured on


@dataclass(frozen=True)
class VAEPlan(RunPlan):
    minutes: float = 38.0
    lr: float = 3e-3
    warmup_steps: int = 40
    single_frames: float = 0.2  # share of the run on single frames
    decay_from: float = 0.4
    ema: float = 0.995
    clips: int = 1200
    held_out: int = 12  # characters to measure on


def train_vae(
    run_dir: Path, plan: VAEPlan, config: VAEConfig = TINY_VAE, device: str = "cpu", init: Path | None = None
) -> Path:
    """Train, measure the mean and std of the latents, and write run_dir/vae.safetensors and vae.json. Resumes.

    init: the safetensors file of a finished run to start from; its encoder may be shallower than `config`'s. Such a run has no phase of
    single frames and a sixth of the plan's learning rate: at two thirds of it the loss of a trained codec doubled.
    """
    if init is not None:
        plan = replace(plan, single_frames=0.0, lr=plan.lr / 6)
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    vae = new_vae(config)
    if init is not None:
        load_into(vae, deepen(open_file(init), vae))
    vae = vae.to(device)
    videos = draw_videos(run_dir, plan.clips, plan.seed)
    held_out = draw_videos(run_dir, plan.held_out, plan.seed + 1000)
    weight = pixel_weight(videos.shape[-1]).to(device)

    def loss_of(step: int, done: float) -> torch.Tensor:
        generator = clip_generator(plan.seed, step)
        video, mask = draw_crops(videos, weight, done < plan.single_frames, generator)
        with autocast(device):
            z = vae.encode(video.to(device))
            out = vae.decode(z + 0.05 * torch.randn(z.shape, generator=generator).to(z))
        return codec_loss(out.float(), video.to(device), mask.to(device)) + 1e-4 * z.float().square().mean()

    ema = train_codec(run_dir, vae, plan, loss_of, lambda: measure(vae, held_out, device), device)
    return write_vae(run_dir, ema.weights, with_latent_statistics(config, vae, ema, videos[:STATISTICS_CLIPS], device))


@torch.inference_mode()
def measure(vae: VAE, held_out_N3THW: torch.Tensor, device: str = "cpu") -> dict[str, float]:
    """Quality on held-out characters after their still frames, over MEASURED_FRAMES: a loss of color shows late."""
    video = from_uint8(held_out_N3THW[:, :, back_and_forth(held_out_N3THW.shape[2], MEASURED_FRAMES)])
    out = torch.stack([vae.decode(vae.encode(v[None].to(device)))[0].cpu() for v in video])
    return reconstruction_quality(out[:, :, STILL_FRAMES:], video[:, :, STILL_FRAMES:])


@torch.inference_mode()
def with_latent_statistics(config: VAEConfig, vae: VAE, ema: Ema, videos_N3THW: torch.Tensor, device: str = "cpu") -> VAEConfig:
    """The configuration with mean and std of each latent channel, so that normalized latents are about N(0, 1)."""
    with ema.swapped(vae):
        z = torch.cat([vae.encode(from_uint8(video[None]).to(device)).cpu() for video in videos_N3THW])
    mean, std = z.mean(dim=(0, 2, 3, 4)).tolist(), z.std(dim=(0, 2, 3, 4)).tolist()
    return replace(config, mean=tuple(round(m, 5) for m in mean), std=tuple(round(s, 5) for s in std))
