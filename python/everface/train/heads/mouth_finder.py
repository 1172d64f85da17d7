"""Trains the network that finds the mouth in an image (`networks.video.mouth_finder`) on rendered clips, whose lips' places are known: minutes on one core.

    python -m everface.train.heads.mouth_finder RUN/frames runs/dit/mouth_finder.safetensors
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.log import log, start_log
from everface.networks.video.mouth_finder import SIDE, MouthFinder
from everface.weights.store import write_half

STEPS, BATCH, LR, HELD_OUT = 4000, 48, 2e-3, 24  # people held out
SHIFT, TURN, ZOOM = 0.2, 0.15, 0.2  # by which images are moved: halves, radians, share
COLOR = 0.3  # gain and offset of each color, at most


def read_people(clips: list[Path]) -> list[tuple[Tensor, Tensor]]:
    """Frames [T, 3, 128, 128] uint8, and the middles of their lips [T, 2] in halves of the image, of clips of rendered people (`chain.frames`); drawn characters
    are left out."""
    out = []
    for path in clips:
        with np.load(path.with_suffix(".npz")) as rest:
            if "lips" not in rest:
                continue
            lips_T42 = torch.from_numpy(rest["lips"])
        moving = np.load(path, mmap_mode="r")[-len(lips_T42) :]
        some = np.linspace(0, len(moving) - 1, 4).round().astype(int)
        rgb_T3HW = torch.from_numpy(np.array(moving[some])).movedim(-1, 1).float()
        middle_T2 = torch.stack([lips_T42[some, 2:, 0].mean(1), lips_T42[some, :2, 1].mean(1)], 1)
        out.append((F.interpolate(rgb_T3HW, (2 * SIDE, 2 * SIDE), mode="area").round().byte(), 2 * middle_T2 - 1))
    return out


def train_mouth_finder(people: list[tuple[Tensor, Tensor]], steps: int = STEPS, seed: int = 0) -> MouthFinder:
    """Repeatable on one machine. The last HELD_OUT people are judged by, where there are more."""
    torch.manual_seed(seed)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    known, others = (people[:-HELD_OUT], people[-HELD_OUT:]) if len(people) > 2 * HELD_OUT else (people, people)
    net = MouthFinder()
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for step in range(steps):
        rgb_N3HW, middle_N2 = draw(known, rng, generator)
        loss = F.smooth_l1_loss(net(rgb_N3HW), middle_N2, beta=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 499 or step == steps - 1:
            log.info("step %d: loss %.5f, off by %.4f of half the image, at most %.4f", step + 1, loss.item(), *judge_mouth_finder(net, others))
    return net.eval()


@torch.inference_mode()
def judge_mouth_finder(net: MouthFinder, people: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean and largest distance of the found from the true middle, of images as they are."""
    off_N = torch.cat([(net(rgb.float() / 127.5 - 1) - middle).norm(dim=1) for rgb, middle in people])
    return off_N.mean().item(), off_N.max().item()


def draw(people: list[tuple[Tensor, Tensor]], rng: random.Random, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch [N, 3, 128, 128], moved, mirrored and colored in other ways, and the middles."""

    def uniform(most: float, *shape: int) -> Tensor:
        return most * (2 * torch.rand(*shape, generator=generator) - 1)

    chosen = [(rgb[n], middle[n]) for rgb, middle in rng.choices(people, k=BATCH) for n in [rng.randrange(len(rgb))]]
    rgb_N3HW, middle_N2 = (torch.stack(each) for each in zip(*chosen, strict=True))
    turn_N, zoom_N, shift_N2 = uniform(TURN, BATCH), 1 + uniform(ZOOM, BATCH), uniform(SHIFT, BATCH, 2)
    mirror_N = torch.where(torch.rand(BATCH, generator=generator) < 0.5, -1.0, 1.0)
    across_N22 = zoom_N[:, None, None] * torch.stack([torch.stack([mirror_N * turn_N.cos(), -turn_N.sin()], 1), torch.stack([mirror_N * turn_N.sin(), turn_N.cos()], 1)], 1)
    grid_NHW2 = F.affine_grid(torch.cat([across_N22, shift_N2[..., None]], 2), list(rgb_N3HW.shape), align_corners=False)
    moved_N3HW = F.grid_sample(rgb_N3HW.float() / 127.5 - 1, grid_NHW2, padding_mode="border", align_corners=False)
    gain, offset = 1 + uniform(COLOR, BATCH, 3, 1, 1), uniform(COLOR, BATCH, 3, 1, 1)
    gray_N = torch.rand(BATCH, generator=generator) < 0.1
    moved_N3HW = torch.where(gray_N[:, None, None, None], moved_N3HW.mean(1, keepdim=True), moved_N3HW * gain + offset)
    moved_N2 = torch.linalg.solve(across_N22, (middle_N2 - shift_N2)[..., None])[..., 0]  # where the sampled place is seen
    return moved_N3HW.clamp(-1, 1), moved_N2


def leave_mouth_finder(path: Path, clips: list[Path], steps: int) -> None:
    """Train it on clips, if it is not there, and they are of rendered people."""
    if not path.exists() and (people := read_people(clips)):
        write_half(path, train_mouth_finder(people, steps).state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.heads.mouth_finder", description="Train the network that finds the mouth in an image.")
    parser.add_argument("frames", type=Path, help="folder of rendered clips, of everface.train.chain")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    start_log()
    log.setLevel("INFO")
    people = read_people(sorted(args.frames.glob("[0-9]*.npy")))
    log.info("%d people", len(people))
    write_half(args.out, train_mouth_finder(people, args.steps).state_dict())


if __name__ == "__main__":
    main()
