"""The run that teacher and stage 1 share: flow matching on windows of clips. They differ in how a window is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from everface.core.config import DiTConfig
from everface.core.log import log
from everface.core.regions import cells
from everface.train.data.clips import ONE_BLOCK, STILL_LATENTS, Clips, smaller_folders, split_clips
from everface.train.data.familiarity import leave_familiarity
from everface.train.engine.checkpoint import TrainedModel
from everface.train.engine.ema import Ema
from everface.train.engine.loop import accumulate_gradients, apply_gradients, train
from everface.train.engine.optimizer import Optimizer
from everface.train.engine.plan import learning_rate_factor
from everface.train.engine.precision import autocast
from everface.train.engine.ranks import process_group
from everface.train.engine.run_log import RunLog
from everface.train.engine.sharding import shard_model
from everface.train.pretrain.dit_files import new_dit, write_dit
from everface.train.pretrain.plans import TransformerPlan
from everface.train.pretrain.window_model import WindowModel, window_loss
from everface.train.pretrain.windows import TrainingWindow
from everface.train.synthetic.characters import region_weight

VALIDATION_CLIPS, VALIDATION_BLOCKS, VALIDATION_BATCHES = 6, 4, 6
Draw = Callable[[Clips, int, int, random.Random, str], TrainingWindow]
"""(clips, how many of them, blocks, rng, device) -> a window."""


def train_on_windows(
    run_dir: Path,
    clips_dir: Path,
    plan: TransformerPlan,
    config: DiTConfig,
    device: str,
    init: Path | None,
    draw: Draw,
    *,
    bidirectional: bool = False,
    until: float | None = None,
) -> Path:
    """Train on the windows that `draw` draws and return the path of the averaged weights, run_dir/dit.safetensors. Resumes.

    init: weights to start from. bidirectional: every block sees the whole window. until: stop for now at this time (engine.loop.train).
    """
    clips, held_out = split_clips(clips_dir, plan.held_out)
    smaller = [split_clips(folder, plan.held_out)[0] for folder in smaller_folders(clips_dir)] if plan.smaller_share else []
    short = [split_clips(clips_dir / ONE_BLOCK, 0)[0]] if plan.one_block_share and (clips_dir / ONE_BLOCK).exists() else []
    if not smaller:
        plan = replace(plan, smaller_share=0.0)  # so that plan.json, and a bundle, claim no size that was not trained
    with process_group(device) as ranks:
        dit = new_dit(config, plan.seed, init).to(ranks.device)
        network = WindowModel(dit, bidirectional, plan.checkpoint_activations)
        references_NChw = clips.latents_N16Thw[:, :, 0].clone()
        patch = config.patch_size[1]
        weights = [latent_weight(some.latents_N16Thw, plan, patch).to(ranks.device) for some in (clips, *smaller)]  # those of one block are as large as the first
        weight_of = {weight.shape: weight for weight in weights}
        clips, held_out, *others = (some.within(plan.region, patch).to(ranks.device) for some in (clips, held_out, *smaller, *short))
        smaller, short = others[: len(smaller)], others[len(smaller) :]
        log.info("%s: %d clips, %.2f M parameters", type(plan).__name__, len(clips), sum(p.numel() for p in dit.parameters()) / 1e6)
        if sharded := plan.sharded(ranks.world):
            shard_model(dit, ranks, plan.shard_group)
        ema = Ema(dit, plan.ema)
        model = TrainedModel(dit, Optimizer(dit, muon=plan.muon), ema)

        def loss(window: TrainingWindow, seed: int) -> torch.Tensor:
            return window_loss(network, window, weight_of[window.x0_B16Fhw.shape[-2:]], torch.Generator(ranks.device).manual_seed(seed), plan.noise_correlation)

        def clips_of(number: int) -> Clips:
            rng = random.Random(plan.seed * 6_700_417 + number)
            kind = rng.random()
            if smaller and kind < plan.smaller_share:
                return rng.choice(smaller)
            return short[0] if short and kind > 1 - plan.one_block_share else clips

        def window_of(some: Clips, batch: int, blocks: int, rng: random.Random) -> TrainingWindow:
            """With more clips where they have fewer blocks; with all of them where there are no more."""
            most = (some.latents_N16Thw.shape[2] - STILL_LATENTS) // config.block_frames
            return draw(some, min(len(some), batch * max(1, blocks // most)), min(blocks, most), rng, ranks.device)

        def losses(step: int, blocks: int, batch: int) -> Iterator[torch.Tensor]:
            """One a micro-batch of this rank. The number of the micro-batch decides everything random in it."""
            for micro in ranks.share(plan.micro_batches):
                number = step * plan.micro_batches + micro
                with autocast(ranks.device):
                    window = window_of(clips_of(number), batch, blocks, random.Random(plan.seed * 7_919_003 + number))
                    one = loss(window, plan.seed * 1_000_003 + number)
                yield one

        def update(step: int, done: float, log: RunLog) -> None:
            _, blocks, batch = next(c for c in reversed(plan.curriculum) if done >= c[0])
            mean = accumulate_gradients(model, losses(step, blocks, batch), plan.micro_batches, ranks, sharded)
            norm = apply_gradients(model, plan.lr * learning_rate_factor(done, step, plan), ranks)
            log.add(loss=ranks.sum(mean)[0])
            log.set(blocks=blocks, norm=round(norm, 3))

        @torch.no_grad()
        def validate() -> dict[str, float]:
            """Loss on held-out clips, on the same noise every time."""
            count = min(VALIDATION_CLIPS, len(held_out))
            longest = min(VALIDATION_BLOCKS, (held_out.latents_N16Thw.shape[2] - STILL_LATENTS) // config.block_frames)
            with ema.swapped(dit):
                windows = (draw(held_out, count, longest, random.Random(k), ranks.device) for k in range(VALIDATION_BATCHES))
                mean = sum(loss(window, k).item() for k, window in enumerate(windows)) / VALIDATION_BATCHES
            return {"valid": round(mean, 5)}

        progress = train(run_dir, plan, {"": model}, update, ranks, measure=validate if len(held_out) else None, until=until)
        if ranks.rank == 0:
            leave_familiarity(run_dir, references_NChw)
        return write_dit(run_dir, dit, ema, plan, progress, ranks)


def latent_weight(latents_xhw: torch.Tensor, plan: TransformerPlan, patch: int) -> torch.Tensor:
    """Loss weight of those cells of such latents, which are of the whole image, that are in the plan's region; its mean is 1."""
    h, w = latents_xhw.shape[-2:]
    weight_hw = region_weight(h, w, plan.mouth_weight, plan.eyes_weight)
    if plan.region is not None:
        weight_hw = weight_hw[cells(plan.region, (h, w), patch)]
    return weight_hw / weight_hw.mean()
