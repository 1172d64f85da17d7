"""Sharpens the VAE's decoder against a critic of patches: squared error alone makes an image soft, as it pays for detail in the wrong place.

The encoder is frozen, and so are all latents. The critic (Isola et al. 2017; as in VQGAN, Esser et al. 2021) sees each frame beside its change from the
frame before, so that detail which flickers is told from detail that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from everface.networks.video.vae import VAE
from everface.train.codec.decode_stream import DecodeStream, Frames, interleave_streams
from everface.train.codec.loss import codec_loss, pixel_weight
from everface.train.codec.training import write_vae
from everface.train.data.clips import Clips
from everface.train.data.drawn import clip_generator
from everface.train.data.vae_files import ENCODER, read_vae, read_vae_config
from everface.train.engine.checkpoint import TrainedModel
from everface.train.engine.ema import Ema
from everface.train.engine.loop import apply_gradients, train
from everface.train.engine.optimizer import Optimizer
from everface.train.engine.plan import RunPlan, learning_rate_factor
from everface.train.engine.precision import autocast
from everface.train.engine.ranks import Ranks
from everface.train.engine.run_log import RunLog

BETAS = (0.5, 0.99)  # of Adam: little momentum, as both sides of the game move


@dataclass(frozen=True)
class SharpenPlan(RunPlan):
    minutes: float = 120.0
    lr: float = 2e-4
    decay_from: float = 0.5
    ema: float = 0.995
    critic_lr: float = 4e-4
    critic_width: int = 32
    critic_alone: int = 150  # steps before the decoder listens to it
    balance: float = 0.6  # gradient of the critic's part, at the pixels, over that of the codec's loss
    color_weight: float = 3.0
    latent_noise: float = 0.05  # of a latent's standard deviation: the transformer's latents are not exact either


class PatchCritic(nn.Module):
    """Frames and their changes [N, 6, H, W] -> scores [N, 1, H/8, W/8], each of a patch of some 40 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (6, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, video_B3THW: Tensor) -> Tensor:
        """Of all frames but the first."""
        now, before = video_B3THW[:, :, 1:], video_B3THW[:, :, :-1]
        seen = torch.cat([now, 4 * (now - before)], dim=1)
        return self.layers(seen.transpose(1, 2).flatten(0, 1))


def critic_loss(critic: PatchCritic, truth: Tensor, made: Tensor) -> Tensor:
    """The hinge loss."""
    return (F.relu(1 - critic(truth)).mean() + F.relu(1 + critic(made)).mean()) / 2


def balanced_gradient(made: Tensor, faithful: Tensor, sharp: Tensor, balance: float) -> Tensor:
    """The gradient at the pixels of two losses of `made`, the second's scaled to `balance` times the norm of the first's."""
    (a,) = torch.autograd.grad(faithful, made, retain_graph=True)
    (b,) = torch.autograd.grad(sharp, made, retain_graph=True)
    return a + balance * a.norm() / b.norm().clamp_min(1e-20) * b


def sharpen(
    run_dir: Path, vae_run: Path, clips: Clips, frames: Frames, plan: SharpenPlan, device: str,
    measure: Callable[[VAE], dict[str, float]], until: float | None = None,
) -> float:  # fmt: skip
    """Train, and write run_dir/vae.safetensors and vae.json. Row n of the frames belongs to clip n. `measure` tells how good a VAE is.
    Returns the share of the plan that is done. Resumes."""
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    vae, critic, ranks = read_vae(vae_run).to(device).train(), PatchCritic(plan.critic_width).to(device), Ranks(device=device)
    for part in (vae.encoder, vae.conv1):
        part.requires_grad_(False)
    ema = Ema(vae, plan.ema)
    models = {"": TrainedModel(vae, Optimizer(vae), ema), "critic.": TrainedModel(critic, Optimizer(critic, betas=BETAS, muon=False))}
    weight = pixel_weight(frames[torch.tensor([0])].shape[-1])[None, None, None].to(device)
    streams: Iterator[DecodeStream] | None = None

    def update(step: int, done: float, log: RunLog) -> None:
        nonlocal streams
        if streams is None:  # a resumed run draws other clips than it began with
            streams = interleave_streams(vae, clips, frames, 0, plan.seed + step, device)
        with autocast(device):
            out, truth = next(streams).step(vae, plan.latent_noise, clip_generator(plan.seed, step))
        made, factor = out.detach().float().requires_grad_(), learning_rate_factor(done, step, plan)
        for model in models.values():
            model.optimizer.zero_grad()
        with autocast(device):
            judged = critic_loss(critic, truth, made.detach())
        judged.backward()
        apply_gradients(models["critic."], plan.critic_lr * factor, ranks)
        log.add(critic=judged.item())
        if step < plan.critic_alone:
            return
        faithful = codec_loss(made, truth, weight, color_weight=plan.color_weight)
        with autocast(device):
            sharp = -critic(made).mean()
        out.backward(balanced_gradient(made, faithful, sharp, plan.balance).to(out))
        apply_gradients(models[""], plan.lr * factor, ranks)
        log.add(loss=faithful.item())

    def measured() -> dict[str, float]:
        with ema.swapped(vae):
            return measure(vae)

    progress = train(run_dir, plan, models, update, ranks, measure=measured, measure_every=200, until=until)
    kept = load_file(vae_run / "vae.safetensors")  # the encoder, to the bit
    write_vae(run_dir, {n: kept[n] if n.startswith(ENCODER) else t.cpu() for n, t in ema.weights.items()}, read_vae_config(vae_run))
    return progress.step / plan.iterations if plan.iterations else progress.seconds / (60 * plan.minutes)
