"""The run that the whole codec and the decoder alone share: one loss a step, measurements, and files that hold a VAE."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from everface.core.config import VAEConfig
from everface.networks.video.vae import VAE
from everface.train.engine.checkpoint import TrainedModel
from everface.train.engine.ema import Ema
from everface.train.engine.loop import accumulate_gradients, apply_gradients, train
from everface.train.engine.optimizer import Optimizer
from everface.train.engine.plan import RunPlan, learning_rate_factor
from everface.train.engine.ranks import Ranks
from everface.train.engine.run_log import RunLog

MEASURE_EVERY = 200  # steps


def train_codec(
    run_dir: Path,
    vae: VAE,
    plan: RunPlan,
    loss_of: Callable[[int, float], torch.Tensor],
    measure: Callable[[], dict[str, float]],
    device: str,
    until: float | None = None,
) -> Ema:
    """Train the parameters of `vae` that need gradients; returns the averaged weights. Resumes. until: as engine.loop.train has it.

    loss_of(step, share of the run that is behind): the loss of one step. `measure` is called with the averaged weights in place.
    """
    ranks = Ranks(device=device)
    ema = Ema(vae, plan.ema)
    model = TrainedModel(vae, Optimizer(vae), ema)

    def update(step: int, done: float, log: RunLog) -> None:
        log.add(loss=accumulate_gradients(model, [loss_of(step, done)], 1, ranks))
        apply_gradients(model, plan.lr * learning_rate_factor(done, step, plan), ranks)

    def averaged() -> dict[str, float]:
        with ema.swapped(vae):
            return measure()

    train(run_dir, plan, {"": model}, update, ranks, measure=averaged, measure_every=MEASURE_EVERY, measure_last=True, until=until)
    return ema


def write_vae(run_dir: Path, weights: Mapping[str, torch.Tensor], config: VAEConfig) -> Path:
    """Write run_dir/vae.safetensors and vae.json; returns the path of the first."""
    path = run_dir / "vae.safetensors"
    save_file({n: t.cpu().contiguous() for n, t in weights.items()}, path)
    (run_dir / "vae.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    return path
