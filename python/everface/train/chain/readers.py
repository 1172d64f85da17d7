"""The lip reader and the pose reader of rendered people, trained on single frames of rendered clips."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from everface.train.chain.frames import as_video, read_frames, read_rest
from everface.train.data.clips import STILL_FRAMES
from everface.train.evaluate.readers.lip_reader import LipReader, degrade
from everface.train.evaluate.readers.pose_reader import UNIT, PoseReader

Reader = TypeVar("Reader", bound=nn.Module)
BATCH = 96
LIPS = ("opening", "width", "blink")


def train_lip_reader(clips: list[Path], steps: int, device: str, seed: int = 0) -> LipReader:
    """Opening, width and blink. Repeatable on one machine."""
    weight_3 = torch.tensor([1.0, 0.6, 0.5], device=device)
    return _train(LipReader(), clips, lambda truth, t: [truth[name][t] for name in LIPS], weight_3, steps, device, seed)


def train_pose_reader(clips: list[Path], steps: int, device: str, seed: int = 0) -> PoseReader:
    """Rotation of the head."""
    weight_3 = torch.full((3,), UNIT**-2, device=device)
    return _train(PoseReader(), clips, lambda truth, t: list(truth["turn"][t]), weight_3, steps, device, seed)


def _train(
    reader: Reader, clips: list[Path], target: Callable[[dict[str, np.ndarray], int], list[float]], weight_3: Tensor, steps: int, device: str, seed: int
) -> Reader:  # fmt: skip
    """Clips without truth (drawn characters) and without the rotation (of early versions) are left out."""
    rng, generator = random.Random(seed), torch.Generator(device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Conv2d | nn.Linear) else None)
    reader = reader.to(device)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1, pct_start=0.15)
    truths = [(path, rest) for path in clips if "turn" in (rest := read_rest(path))]
    for _ in range(steps):
        images, targets = [], []
        for path, truth in rng.choices(truths, k=BATCH):
            t = rng.randrange(len(truth["opening"]))
            images.append(read_frames(path)[STILL_FRAMES + t])
            targets.append(target(truth, t))
        clean = as_video(np.stack(images)[:, None], device)[:, :, 0]
        with torch.no_grad():
            seen = torch.cat([degrade(part, generator) for part in clean.split(12)])
        loss = ((reader(seen) - torch.tensor(np.array(targets, np.float32), device=device)).square() * weight_3).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return reader.eval()
