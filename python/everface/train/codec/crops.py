"""Training crops of drawn characters for the VAE: single frames first, then stretches of 21 and 41 frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from everface.train.data.clips import STILL_FRAMES
from everface.train.data.drawn import clip_generator
from everface.train.synthetic.characters import eyes_box, from_uint8, mouth_box, render, to_uint8
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import neutral, sample_motion

MOVING_FRAMES = 16  # after the still frames
OVERSHOOT = 16  # pixels by which a crop may be drawn beyond the image; it is then moved back to the image's edge


def draw_videos(run_dir: Path, count: int, seed: int) -> torch.Tensor:
    """uint8 videos [N, 3, 5 + 16, H, W] of `count` characters with random mouths, rendered once and kept in the run's folder."""
    path = run_dir / f"clips_{seed}_{count}.safetensors"
    if not path.exists():
        out = []
        for n in range(count):
            g = clip_generator(seed, n)
            mouth = torch.rand(2, MOVING_FRAMES // 4 + 2, generator=g)  # any opening, any width, changing at the pace of speech
            open_T, wide_T = F.interpolate(mouth[None], size=MOVING_FRAMES, mode="linear")[0].clamp(0, 1)
            silent = float(torch.rand(1, generator=g) < 0.15)
            anim = sample_motion(open_T * (1 - silent), wide_T, g)
            identity = sample_identity(1, g)
            frames = [render(identity, neutral(1)).expand(STILL_FRAMES, -1, -1, -1), render(identity, anim)]
            out.append(to_uint8(torch.cat(frames)).transpose(0, 1))
        save_file({"clips": torch.stack(out)}, path)
    return load_file(path)["clips"]


def draw_crops(
    videos_N3THW: torch.Tensor, weight_HW: torch.Tensor, single: bool, g: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(video [B, 3, T, H, W] in -1..1, weight [B, 1, T, H, W]): whole single frames, or crops of 21 and 41 frames.

    Crops reach the image's edges often: drawn evenly, one of 65 did, and a fifth of the codec's error was in the lowest sixteen rows.
    Crops are long because an encoder's receptive field is 80 frames: taught on 13 at a time, it lost the colors of some faces within a
    second. Crops longer than the videos play them back and forth. The first frames have four times the error of later ones but are never
    shown, though the reference image is encoded so; they weigh less, or most of what is learned would be theirs.
    """

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    def crop(side: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        video = videos_N3THW[pick(len(videos_N3THW))]
        t = pick(len(order)) if single else 0
        y, x = place_crop(size, side, pick)
        return from_uint8(video[:, order[t : t + frames], y : y + side, x : x + side]), weight_HW[y : y + side, x : x + side]

    size = videos_N3THW.shape[-1]
    side, frames, batch = (size, 1, 12) if single else ((64, 41, 2), (64, 41, 2), (64, 41, 2), (96, 21, 2), (size, 21, 1))[pick(5)]
    order = back_and_forth(videos_N3THW.shape[2], frames)
    # Of two crops the one with more detail: flat backgrounds are soon learned.
    drawn = [max((crop(side, frames) for _ in range(2)), key=lambda one: one[0].diff(dim=-1).abs().mean().item()) for _ in range(batch)]
    weights = torch.stack([weight for _, weight in drawn])[:, None, None]
    return torch.stack([video for video, _ in drawn]), weights * frame_weight(frames).to(weights)[:, None, None]


def place_crop(size: int, side: int, pick: Callable[[int], int], *, features: bool = False) -> tuple[int, int]:
    """Top and left of a crop of an image of `size` pixels: a third of them around the features, or all. pick(n): a random number below n."""
    y, x = (min(max(pick(size - side + 1 + 2 * OVERSHOOT) - OVERSHOOT, 0), size - side) for _ in range(2))
    if pick(3) == 0 or features:
        top, bottom, left, right = (mouth_box, eyes_box)[pick(2)](size)
        y = min(max((top + bottom - side) // 2 + pick(17) - 8, 0), size - side)
        x = min(max((left + right - side) // 2 + pick(33) - 16, 0), size - side)
    return y, x


def frame_weight(frames: int) -> torch.Tensor:
    """Loss weight [T] of a crop's frames: rises from 0.4 to 1 over the first twelve, after which quality is level. Mean 1."""
    weight = (0.4 + torch.arange(frames) / 20).clamp(max=1)
    return weight / weight.mean()


def back_and_forth(length: int, count: int) -> list[int]:
    """Frame numbers of a video in order; where `count` is more than its length, its moving part goes back and forth for the rest."""
    order = list(range(length))
    while len(order) < count:
        order += [*range(length - 2, STILL_FRAMES, -1), *range(STILL_FRAMES, length)]
    return order[: max(count, length)]
