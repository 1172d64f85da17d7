"""The stage-1 run: diffusion forcing over a curriculum of windows, resumable, logged as JSON lines.

    everface train stage1 RUN --clips DIR --minutes 60
"""

from __future__ import annotations

import random
from pathlib import Path

import torch

from everface.core.config import DiTConfig
from everface.core.log import log
from everface.train.forcing import WindowModel, draw_window, region_weight, window_loss
from everface.train.loop import descend, new_dit, split_clips
from everface.train.plans import TINY, Stage1
from everface.train.spread import ranks


def train_stage1(
    run_dir: Path, clips_dir: Path, plan: Stage1, config: DiTConfig = TINY, device: str = "cpu", init: Path | None = None
) -> Path:
    """Train and return the path of the EMA weights, `run_dir/dit.safetensors`. Resumes from run_dir when it holds a checkpoint."""
    train, valid = split_clips(clips_dir, plan.held_out)
    with ranks(device) as among:
        dit = new_dit(config, plan.seed, init).to(among.device)
        model = WindowModel(dit, again=plan.checkpoint)
        h, w = train.latents_N16Thw.shape[-2:]
        weight = region_weight(h, w, plan.mouth, plan.eyes).to(among.device)
        n = config.block_frames

        def loss_of(number: int, blocks: int, batch: int) -> torch.Tensor:
            rng = random.Random(plan.seed * 7_919_003 + number)
            window = draw_window(train, batch, blocks, n, rng, among.device, plan)
            g = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
            return window_loss(model, window, weight, g, plan.noise_correlation)

        @torch.no_grad()
        def validate() -> float:
            """Loss on unseen characters, on the same noise every time."""
            total = 0.0
            for k in range(6):
                window = draw_window(valid, min(6, len(valid)), 4, n, random.Random(k), among.device, plan)
                g = torch.Generator().manual_seed(k)
                total += window_loss(model, window, weight, g, plan.noise_correlation).item()
            return total / 6

        log.info("stage 1: %d clips, %.2f M parameters", len(train), sum(p.numel() for p in dit.parameters()) / 1e6)
        return descend(run_dir, plan, dit, loss_of, validate, among)
