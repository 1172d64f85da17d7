"""`everface train stage1`: diffusion forcing. The causal student learns to denoise windows of blocks, each at a noise level of its own."""

from __future__ import annotations

import random
from pathlib import Path

from everface.core.config import DiTConfig
from everface.train.data.clips import Clips
from everface.train.pretrain.flow_matching import train_on_windows
from everface.train.pretrain.plans import TINY_DIT, Stage1Plan
from everface.train.pretrain.windows import TrainingWindow, draw_window


def train_stage1(
    run_dir: Path, clips_dir: Path, plan: Stage1Plan, config: DiTConfig = TINY_DIT, device: str = "cpu", init: Path | None = None,
    until: float | None = None,
) -> Path:  # fmt: skip
    """Train until the plan is done or time.monotonic() is `until`, and return the path of the averaged weights, run_dir/dit.safetensors.
    Resumes where run_dir holds a checkpoint."""

    def draw(clips: Clips, batch: int, blocks: int, rng: random.Random, device: str) -> TrainingWindow:
        return draw_window(clips, batch, blocks, config.block_frames, rng, device, plan)

    return train_on_windows(run_dir, clips_dir, plan, config, device, init, draw, until=until)
