"""Train the decoder of a finished model with a critic, and write the model with it.

    python -m everface.train.sharpen RUN --model python/everface/default --frames FRAMES

Encoder and latents stay as they are, so the transformer stays valid. FRAMES are rendered clips (`everface.train.chain`). The same command again goes on;
RUN/model is the model with the new decoder, once the run is done.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from everface.core.config import LATENT_FRAMES
from everface.core.errors import BadInput, EverfaceError
from everface.core.log import log, start_log
from everface.train.chain.codec import measure, share_done
from everface.train.chain.frames import HELD_OUT, paths
from everface.train.codec.loss import codec_loss, motion_weight
from everface.train.data.vae_files import read_vae
from everface.train.engine.checkpoint import TrainedModel
from everface.train.engine.ema import Ema
from everface.train.engine.loop import accumulate_gradients, apply_gradients, train
from everface.train.engine.optimizer import Optimizer
from everface.train.engine.plan import RunPlan, learning_rate_factor, with_settings
from everface.train.engine.precision import autocast
from everface.train.engine.ranks import Ranks
from everface.train.engine.run_log import RunLog
from everface.train.sharpen.critic import Critic, balanced_gradient, critic_loss, fooling_loss
from everface.train.sharpen.crops import CropSize, clip_latents, draw_crops
from everface.weights.store import write_half

EDGE = 8  # pixels at the edges of a crop that are not learned from: what is beyond them is missing
LEAST_CLIPS, MEASURE_EVERY = 8, 400


@dataclass(frozen=True)
class SharpenPlan(RunPlan):
    minutes: float = 30.0
    lr: float = 5e-4
    warmup_steps: int = 20
    decay_from: float = 0.4
    ema: float = 0.99
    critic_lr: float = 4e-4
    critic_from: float = 0.02  # share of the run after which the decoder hears of the critic
    share: float = 1.2  # of `balanced_gradient`
    moving_gain: float = 15.0  # of `motion_weight`
    latent_noise: float = 0.05
    held_out: int = 12
    crops: CropSize = field(default_factory=CropSize)


def sharpen(run: Path, model: Path, frames: Path, plan: SharpenPlan, device: str, until: float | None = None) -> bool:
    """Train until the plan is done or time.monotonic() is `until`; returns whether it is. Resumes. Raises BadInput without clips."""
    clips, held_out = paths(frames), paths(frames / HELD_OUT)[: plan.held_out]
    if not held_out:
        clips, held_out = clips[plan.held_out :], clips[: plan.held_out]
    if len(clips) < LEAST_CLIPS:
        raise BadInput(f"{frames} has {len(clips)} rendered clips to learn from, and {LEAST_CLIPS} are needed: render some (docs/training/heads.md)")
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    vae, critic, ranks = read_vae(model).to(device), Critic().to(device), Ranks(device=device)
    latents = clip_latents(run / "latents.safetensors", model, vae, clips, device)
    for part in (vae.encoder, vae.conv1):
        part.requires_grad_(False)
    vae.train()
    ema = Ema(vae, plan.ema, trained=True)
    trained = {"": TrainedModel(vae, Optimizer(vae), ema), "critic.": TrainedModel(critic, Optimizer(critic, betas=(0.5, 0.99), muon=False))}

    def update(step: int, done: float, run_log: RunLog) -> None:
        rng, generator = random.Random(plan.seed * 1_000_003 + step), torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        z, true = draw_crops(frames, latents, plan.crops, vae.stride_s, rng)
        z = (z + plan.latent_noise * torch.randn(z.shape, generator=generator)).to(device)
        with autocast(device):
            out = vae.decode(z)
        inner = (..., slice(EDGE, -EDGE), slice(EDGE, -EDGE))
        weight, true = motion_weight(true, plan.moving_gain)[inner].to(device), true[inner].to(device)
        out = out[:, :, LATENT_FRAMES:].float()[inner]
        run_log.add(critic=accumulate_gradients(trained["critic."], [critic_loss(critic, true, out)], 1, ranks))
        apply_gradients(trained["critic."], plan.critic_lr, ranks)
        pixels = out.detach().requires_grad_()
        rebuilding = codec_loss(pixels, true, weight)
        share = plan.share if done >= plan.critic_from else 0.0
        gradient = balanced_gradient(rebuilding, fooling_loss(critic, pixels, weight), pixels, share)
        accumulate_gradients(trained[""], [(out * gradient).sum()], 1, ranks)
        apply_gradients(trained[""], plan.lr * learning_rate_factor(done, step, plan), ranks)
        run_log.add(loss=rebuilding.item())

    def averaged() -> dict[str, float]:
        with ema.swapped(vae):
            return measure(vae, held_out, device)

    quality = averaged if held_out else None
    if quality and not (run / "progress.json").exists():
        log.info("the decoder before: %s", quality())
    train(run, plan, trained, update, ranks, measure=quality, measure_every=MEASURE_EVERY, measure_last=True, until=until)
    if share_done(run, plan) < 1:
        return False
    write_model(run / "model", model, ema)
    return True


def write_model(out: Path, model: Path, ema: Ema) -> None:
    """The model's folder again, with another decoder."""
    shutil.copytree(model, out, dirs_exist_ok=True)
    weights = load_file(model / "vae.safetensors")
    write_half(out / "vae.safetensors", weights | {name: tensor.cpu() for name, tensor in ema.weights.items()})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.sharpen", description="Train the decoder of a finished model with a critic.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model to begin with")
    parser.add_argument("--frames", type=Path, required=True, help="folder of rendered clips")
    parser.add_argument("--minutes", type=float, help="of this call; without it, until the run is done")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the plan, as in minutes=40")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    start_log()
    log.setLevel("INFO")
    until = time.monotonic() + 60 * args.minutes if args.minutes else None
    try:
        done = sharpen(args.run, args.model, args.frames, with_settings(SharpenPlan(), "sharpen", args.set), args.device, until)
    except EverfaceError as error:
        raise SystemExit(f"everface: {error}") from None
    log.info("%s", args.run / "model" if done else "not done yet: the same command again goes on")


if __name__ == "__main__":
    main()
