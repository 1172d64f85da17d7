"""The stage-1 run: diffusion forcing over a curriculum of windows, resumable, logged as JSON lines.

    everface train stage1 RUN --clips DIR --minutes 60
"""

from __future__ import annotations

import random
from pathlib import Path

from everface.core.config import DiTConfig
from everface.train.data.clips import Clips
from everface.train.pretrain.flow_matching import learn
from everface.train.pretrain.plans import TINY, Stage1
from everface.train.pretrain.windows import Window, draw_window


def train_stage1(
    run_dir: Path, clips_dir: Path, plan: Stage1, config: DiTConfig = TINY, device: str = "cpu", init: Path | None = None
) -> Path:
    """Train and return the path of the EMA weights, `run_dir/dit.safetensors`. Resumes from run_dir when it holds a checkpoint."""

    def draw(clips: Clips, batch: int, blocks: int, rng: random.Random, device: str) -> Window:
        return draw_window(clips, batch, blocks, config.block_frames, rng, device, plan)

    return learn(run_dir, clips_dir, plan, config, device, init, draw)
