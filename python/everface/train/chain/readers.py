"""The lip reader and the pose reader of rendered people, trained on single frames of rendered clips."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.motion import face_values
from everface.train.chain.frames import as_video, read_frames, read_rest
from everface.train.data.clips import STILL_FRAMES
from everface.train.evaluate.readers.head_fit import BLINK, HeadFit
from everface.train.evaluate.readers.lip_reader import LIPS_WEIGHT, LipReader, fit_reader
from everface.train.evaluate.readers.pose_reader import UNIT, PoseReader
from everface.train.heads.clips import mouth_truth
from everface.train.heads.renderer import Renderer

PEOPLE = 32  # of a batch, with two frames each
LIPS, LIPS_PAIRS = ("opening", "width", "blink"), 3.0
WEIGHT = (LIPS_WEIGHT[0], 3.0, LIPS_WEIGHT[2])  # a mouth's width changes by a quarter of what it opens
TUNING_FRAMES, TUNING_STEPS, FACES_OF = 250, 200, 300  # renders, steps, and clips whose faces they show
SHIFT, TURN, ZOOM = 0.06, 0.06, 0.06  # by which frames are moved: share of their size, radians, share


def train_head_lip_reader(clips: list[Path], steps: int, device: str, seed: int = 0) -> LipReader:
    """Opening, width and blink. Repeatable on one machine."""
    generator = torch.Generator(device).manual_seed(seed)
    draw = _frames(clips, lambda truth, t: [truth[name][t] for name in LIPS], device, seed, moved=True)
    return fit_reader(partial(LipReader, fine=True), draw, WEIGHT, steps, generator, seed, LIPS_PAIRS)


def train_pose_reader(clips: list[Path], steps: int, device: str, seed: int = 0) -> PoseReader:
    """Rotation of the head."""
    generator = torch.Generator(device).manual_seed(seed)
    return fit_reader(PoseReader, _frames(clips, lambda truth, t: list(truth["turn"][t]), device, seed), (UNIT**-2,) * 3, steps, generator, seed)


def read_faces(clips: list[Path]) -> np.ndarray:
    """Values of `networks.motion.FACE` [N, C] of every frame of the first rendered clips; drawn characters are left out."""
    features = [torch.from_numpy(rest["features"][0, :, PAST_FRAMES:]) for path in clips[:FACES_OF] if "turn" in (rest := read_rest(path))]
    return torch.cat([face_values(clip_CT) for clip_CT in features]).numpy()


def tune_head_lip_reader(known: LipReader, renderer: Renderer, seed: int, turn_T3: np.ndarray, face_NC: np.ndarray) -> LipReader:
    """A copy that goes on learning, from renders of one person, since mouths differ more from person to person than their widths change. turn_T3: rotations of the head
    that may be; face_NC: faces, of `read_faces`. The renderer then shows this person."""
    rng, generator = np.random.Generator(np.random.PCG64([seed, 13])), torch.Generator().manual_seed(seed)
    fitted = HeadFit(renderer, seed)
    images, mouths, blinks = list[np.ndarray](), list[tuple[float, float]](), list[float]()
    for _ in range(TUNING_FRAMES):
        pose_P = fitted.random_pose(rng, face_NC)
        pose_P[:3] = turn_T3[rng.integers(len(turn_T3))]
        images.append(fitted.draw(pose_P).astype(np.uint8))
        mouths.append(renderer.measure_mouth()[:2])
        blinks.append(pose_P[BLINK])
    opening_N, width_N = mouth_truth(*np.array(mouths).T)
    rgb_N3HW = as_video(np.stack(images)[:, None], "cpu")[:, :, 0]
    target_N3 = torch.from_numpy(np.stack([opening_N, width_N, np.array(blinks)], 1)).float()

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images), (2 * PEOPLE,), generator=generator)
        return move(rgb_N3HW[rows], generator), target_N3[rows]

    return fit_reader(lambda: deepcopy(known).train(), draw, WEIGHT, TUNING_STEPS, generator, seed, LIPS_PAIRS)


def _frames(
    clips: list[Path], target: Callable[[dict[str, np.ndarray], int], list[float]], device: str, seed: int, moved: bool = False
) -> Callable[[], tuple[Tensor, Tensor]]:  # fmt: skip
    """Draws single frames, two of each person; moved: as if heads were not still. Clips without truth (drawn characters) and without the rotation (of early
    versions) are left out."""
    rng, truths = random.Random(seed), [(path, rest) for path in clips if "turn" in (rest := read_rest(path))]
    generator = torch.Generator(device).manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        images, targets = [], []
        for path, truth in rng.choices(truths, k=PEOPLE):
            frames = read_frames(path)
            for t in rng.sample(range(len(truth["opening"])), 2):
                images.append(frames[STILL_FRAMES + t])
                targets.append(target(truth, t))
        rgb_N3HW = as_video(np.stack(images)[:, None], device)[:, :, 0]
        return move(rgb_N3HW, generator) if moved else rgb_N3HW, torch.tensor(np.array(targets, np.float32), device=device)

    return draw


def move(rgb_N3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Each square frame shifted, turned and zoomed."""

    def rand(most: float) -> Tensor:
        return most * (2 * torch.rand(len(rgb_N3HW), generator=generator, device=generator.device) - 1)

    turn, zoom, right, down = rand(TURN), 1 + rand(ZOOM), rand(2 * SHIFT), rand(2 * SHIFT)  # the grid is -1..1
    rows = torch.stack([zoom * turn.cos(), -turn.sin(), right, turn.sin(), zoom * turn.cos(), down], 1).view(-1, 2, 3)
    grid_NHW2 = F.affine_grid(rows, list(rgb_N3HW.shape), align_corners=False)
    return F.grid_sample(rgb_N3HW, grid_NHW2, padding_mode="border", align_corners=False)
