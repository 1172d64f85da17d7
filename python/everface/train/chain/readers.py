"""The lip reader and the pose reader of rendered people, trained on single frames of rendered clips."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from everface.train.chain.frames import as_video, read_frames, read_rest
from everface.train.data.clips import STILL_FRAMES
from everface.train.evaluate.readers.lip_reader import LIPS_WEIGHT, LipReader, fit_reader
from everface.train.evaluate.readers.pose_reader import UNIT, PoseReader

BATCH = 96
LIPS = ("opening", "width", "blink")


def train_head_lip_reader(clips: list[Path], steps: int, device: str, seed: int = 0) -> LipReader:
    """Opening, width and blink. Repeatable on one machine."""
    generator = torch.Generator(device).manual_seed(seed)
    return fit_reader(LipReader, _frames(clips, lambda truth, t: [truth[name][t] for name in LIPS], device, seed), LIPS_WEIGHT, steps, generator, seed)


def train_pose_reader(clips: list[Path], steps: int, device: str, seed: int = 0) -> PoseReader:
    """Rotation of the head."""
    generator = torch.Generator(device).manual_seed(seed)
    return fit_reader(PoseReader, _frames(clips, lambda truth, t: list(truth["turn"][t]), device, seed), (UNIT**-2,) * 3, steps, generator, seed)


def _frames(
    clips: list[Path], target: Callable[[dict[str, np.ndarray], int], list[float]], device: str, seed: int
) -> Callable[[], tuple[Tensor, Tensor]]:  # fmt: skip
    """Draws single frames. Clips without truth (drawn characters) and without the rotation (of early versions) are left out."""
    rng, truths = random.Random(seed), [(path, rest) for path in clips if "turn" in (rest := read_rest(path))]

    def draw() -> tuple[Tensor, Tensor]:
        images, targets = [], []
        for path, truth in rng.choices(truths, k=BATCH):
            t = rng.randrange(len(truth["opening"]))
            images.append(read_frames(path)[STILL_FRAMES + t])
            targets.append(target(truth, t))
        return as_video(np.stack(images)[:, None], device)[:, :, 0], torch.tensor(np.array(targets, np.float32), device=device)

    return draw
