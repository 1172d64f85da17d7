"""The codec's run on rendered clips: batches of crops that threads read ahead, from a pool that grows meanwhile."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from everface.core.config import VAEConfig
from everface.networks.video.vae import VAE
from everface.train.chain.frames import HELD_OUT, as_video, paths, read_frames
from everface.train.chain.plan import CropPlan
from everface.train.codec.crops import frame_weight, place_crop
from everface.train.codec.loss import codec_loss, motion_weight, pixel_weight, reconstruction_quality
from everface.train.codec.model import new_vae
from everface.train.codec.training import train_codec, write_vae
from everface.train.data.clips import STILL_FRAMES, encode_clips
from everface.train.engine.precision import autocast
from everface.train.evaluate import metrics

Change = Callable[[torch.Tensor, Path], torch.Tensor]
"""(video [3, T, H, W] of a clip, its path) -> what is encoded."""
READ_AHEAD, READERS = 4, 4
LATENT_NOISE = 0.05
STATISTICS_CLIPS, ENCODED_AT_ONCE, SHARPNESS_CLIPS = 200, 4, 6


class CropLoader:
    """The batch of each step, as bytes [B, T, h, w, 3] and loss weights [B, 1, 1, h, w]. Steps must be asked for in order."""

    def __init__(self, frames: Path, plan: CropPlan, size: int) -> None:
        self.frames, self.plan, self.size, self.known = frames, plan, size, paths(frames)
        self.weight_HW = pixel_weight(size)
        self.threads = ThreadPoolExecutor(READERS)
        self.ahead: dict[int, Future[tuple[torch.Tensor, torch.Tensor]]] = {}

    def batch(self, step: int, done: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Of this step, at this share of the run. A batch that was read ahead may still be of the phase before for a few steps after a change."""
        if step % 50 == 0:
            self.known = paths(self.frames)
        for n in range(step, step + READ_AHEAD):
            if n not in self.ahead:
                self.ahead[n] = self.threads.submit(self._draw, n, done)
        return self.ahead.pop(step).result()

    def _draw(self, step: int, done: float) -> tuple[torch.Tensor, torch.Tensor]:
        rng, moving = random.Random(self.plan.seed * 1_000_003 + step), done >= self.plan.moving_from
        side, frames, count = (self.size, 1, self.plan.single_batch) if done < self.plan.single_frames else rng.choice(self.plan.crops)
        out, weights = np.empty((count, frames, side, side, 3), np.uint8), []
        for row in out:
            video = read_frames(rng.choice(self.known))
            first = rng.randrange(len(video) - frames + 1)
            top, left = place_crop(self.size, side, rng.randrange, features=moving)
            row[:] = video[first : first + frames, top : top + side, left : left + side]
            weights.append(self.weight_HW[top : top + side, left : left + side])
        crops = torch.from_numpy(out)
        return crops, motion_weight(as_video(crops, "cpu"), self.plan.moving_gain) if moving else torch.stack(weights)[:, None, None]

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)


def train_on_frames(run_dir: Path, frames: Path, plan: CropPlan, config: VAEConfig, size: int, device: str, until: float) -> bool:
    """Train until the plan is done or time.monotonic() is `until`, then write run_dir/vae.safetensors and vae.json, on a CPU only when
    it is done. Returns whether it is. Resumes."""
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    vae = new_vae(config).to(device).train()
    held_out = paths(frames / HELD_OUT)[: plan.held_out]
    loader = CropLoader(frames, plan, size)

    def loss_of(step: int, done: float) -> torch.Tensor:
        crops, weight = loader.batch(step, done)
        video, weight = as_video(crops, device), weight.to(device)
        generator = torch.Generator(device).manual_seed(plan.seed * 1_000_003 + step)
        with autocast(device):
            z = vae.encode(video)
            out = vae.decode(z + LATENT_NOISE * torch.randn(z.shape, generator=generator, device=device).to(z))
        frame = frame_weight(video.shape[2]).to(device)[:, None, None]
        return codec_loss(out.float(), video, weight * frame, color_weight=plan.color_weight) + 1e-4 * z.float().square().mean()

    try:
        ema = train_codec(run_dir, vae, plan, loss_of, lambda: measure(vae, held_out, device), device, until)
    finally:
        loader.close()
    if device == "cpu" and share_done(run_dir, plan) < 1:
        return False  # the statistics take minutes there, and nothing asks for them yet
    with ema.swapped(vae):
        config = with_statistics(config, vae, paths(frames)[:STATISTICS_CLIPS], device)
    write_vae(run_dir, {n: t.cpu() for n, t in ema.weights.items()}, config)
    return share_done(run_dir, plan) >= 1


def share_done(run_dir: Path, plan: CropPlan | object) -> float:
    """How far a run has come, by its progress.json."""
    path = run_dir / "progress.json"
    if not path.exists():
        return 0.0
    held, iterations = json.loads(path.read_text()), getattr(plan, "iterations", 0)
    return held["step"] / iterations if iterations else held["seconds"] / (60 * getattr(plan, "minutes", 1.0))


@torch.inference_mode()
def measure(vae: VAE, clips: list[Path], device: str) -> dict[str, float]:
    """Quality over whole held-out clips, after their still frames, and their sharpness as a ratio to the truth; the mean of the clips'."""
    rows = [reconstruction_quality(*pair) | {"sharpness": sharpness_ratio(*pair)} for pair in reconstruct(vae, clips, device)]
    return {key: round(sum(row[key] for row in rows) / len(rows), 3) for key in rows[0]}


def sharpness_ratio(decoded_N3THW: torch.Tensor, true_N3THW: torch.Tensor) -> float:
    decoded, true = (metrics.sharpness(video.transpose(1, 2).flatten(0, 1)) for video in (decoded_N3THW, true_N3THW))
    return decoded / true


def reconstruct(vae: VAE, clips: list[Path], device: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(decoded, true) moving frames [1, 3, T, H, W] of each clip, float32 on the device."""
    for path in clips:
        video = as_video(np.asarray(read_frames(path))[None], device)
        with autocast(device):
            out = vae.decode(vae.encode(video))
        yield out[:, :, STILL_FRAMES:].float(), video[:, :, STILL_FRAMES:]


def encode_all(vae: VAE, clips: list[Path], device: str, change: Change | None = None) -> Iterator[torch.Tensor]:
    """float16 latents [z, T, h, w] of each clip, on the CPU."""
    for first in range(0, len(clips), ENCODED_AT_ONCE):
        some = clips[first : first + ENCODED_AT_ONCE]
        video = as_video(np.stack([read_frames(path) for path in some]), device)
        if change is not None:
            video = torch.stack([change(one, path) for one, path in zip(video, some, strict=True)])
        yield from encode_clips(vae, video).cpu()


def shrink(video_3THW: torch.Tensor, side: int) -> torch.Tensor:
    """Square frames of so many pixels, each the mean of those it covers."""
    small = F.interpolate(video_3THW.movedim(1, 0), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return small.movedim(0, 1).contiguous()


@torch.inference_mode()
def with_statistics(config: VAEConfig, vae: VAE, clips: list[Path], device: str) -> VAEConfig:
    """The configuration with mean and std of each latent channel, so that normalized latents are about N(0, 1)."""
    z = torch.stack(list(encode_all(vae, clips, device))).float()
    mean, std = z.mean(dim=(0, 2, 3, 4)).tolist(), z.std(dim=(0, 2, 3, 4)).tolist()
    return replace(config, mean=tuple(round(m, 5) for m in mean), std=tuple(round(s, 5) for s in std))
