"""Measures of a clip. Frames are rgb_T3HW float32 in -1..1 at 25 per second; every measure is a float.

Correlation alone rewards blur, so it is always read with amplitude, sharpness, flicker and the correlation with other audio.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import LATENT_FRAMES
from everface.train.engine.statistics import correlation
from everface.train.synthetic.characters import from_uint8, to_uint8

BLOCK_FRAMES = 12
MAX_LAG = 5  # frames of lag that are searched, each way


def as_rgb(frames_THW3: Tensor) -> Tensor:
    """uint8 video frames to rgb_T3HW in -1..1."""
    return from_uint8(frames_THW3.permute(0, 3, 1, 2))


def as_frames(rgb_T3HW: Tensor) -> Tensor:
    """rgb_T3HW in -1..1 to uint8 video frames_THW3."""
    return to_uint8(rgb_T3HW).permute(0, 2, 3, 1)


def lag(read_T: Tensor, truth_T: Tensor) -> int:
    """The shift in frames, within `MAX_LAG`, at which the curves agree best; positive means that the mouth is late."""
    T = len(truth_T)

    def agree(shift: int) -> float:
        return correlation(read_T[max(shift, 0) : T + min(shift, 0)], truth_T[max(-shift, 0) : T - max(shift, 0)])

    return max(sorted(range(-MAX_LAG, MAX_LAG + 1), key=abs), key=agree)


def amplitude_ratio(read_T: Tensor, truth_T: Tensor) -> float:
    """Amplitude of the mouth relative to the truth: ratio of standard deviations."""
    return (read_T.std() / truth_T.std().clamp(min=1e-6)).item()


def sharpness(rgb_T3HW: Tensor) -> float:
    """Mean absolute Laplacian of the gray image. Use it as a ratio to the truth; noise raises it too, so look at flicker as well."""
    gray = rgb_T3HW.mean(1, keepdim=True)
    kernel = gray.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(gray, kernel).abs().mean().item()


def frame_change(rgb_T3HW: Tensor) -> Tensor:
    """Mean absolute change from each frame to the next. Entry i is frame i + 1 against frame i, so there are T - 1."""
    return (rgb_T3HW[1:] - rgb_T3HW[:-1]).abs().mean((1, 2, 3))


def edge_flicker(rgb_T3HW: Tensor, block_frames: int = BLOCK_FRAMES) -> tuple[float, float]:
    """Change at block edges (every `block_frames`) and at other latent edges (every 4), over the change inside a latent frame.

    1 is a seamless video. A video without change inside has no ratio: inf where its edges change, 1 where nothing does.
    """
    change = frame_change(rgb_T3HW)
    at = torch.arange(1, len(rgb_T3HW))
    block, latent = at % block_frames == 0, (at % LATENT_FRAMES == 0) & (at % block_frames != 0)
    inside = change[~block & ~latent].mean().item()

    def ratio(edge: float) -> float:
        if inside > 1e-7:
            return edge / inside
        return math.inf if edge > 1e-7 else 1.0

    return tuple(ratio(change[edges].mean().item()) if edges.any() else math.nan for edges in (block, latent))  # type: ignore[return-value]  two values, as the loop has


def motion_energy(rgb_T3HW: Tensor) -> float:
    """Mean absolute change per frame, over the whole clip."""
    return frame_change(rgb_T3HW).mean().item()


def count_blinks(blink_T: Tensor) -> int:
    """How often the lids go from open (below 0.35) to shut (above 0.65); the hysteresis keeps flicker from counting."""
    count, shut = 0, False
    for value in blink_T.tolist():
        if not shut and value > 0.65:
            count, shut = count + 1, True
        elif shut and value < 0.35:
            shut = False
    return count


def deviation(made_T3HW: Tensor, true_T3HW: Tensor) -> tuple[float, float]:
    """(agreement, gain) of what changes in two videos of the same frames: the cosine of their deviations from their own means, and how much of the
    true one is in the other. Both are 1 for equal videos, and 0 where nothing agrees; noise in the truth lowers both."""
    made, true = (video - video.mean(0, keepdim=True) for video in (made_T3HW, true_T3HW))
    common, of_true = (made * true).sum(), true.square().sum().clamp(min=1e-12)
    return (common / (of_true * made.square().sum().clamp(min=1e-12)).sqrt()).item(), (common / of_true).item()


def crop(rgb: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """[..., H, W] inside (top, bottom, left, right)."""
    return rgb[..., box[0] : box[1], box[2] : box[3]]


def psnr(a_T3HW: Tensor, b_T3HW: Tensor) -> float:
    """Peak signal to noise ratio in dB, peak 2 (the range -1..1), over the clip; at most 100."""
    mse = (a_T3HW - b_T3HW).square().mean().item()
    return min(100.0, 10 * math.log10(4 / max(mse, 1e-12)))
