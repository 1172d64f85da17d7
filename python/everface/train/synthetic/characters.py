"""Renders characters: identity and animation to images, batched, at any size; and the regions of mouth and eyes.

    id_NP = sample_identity(1, generator); anim_TA = sample_motion(*mouth_targets(pcm_S), generator); rgb_T3HW = render(id_NP, anim_TA)
"""

from __future__ import annotations

import torch
from torch import Tensor

from everface.train.synthetic.drawing import draw

CHUNK = 12  # frames drawn at once: larger batches do not fit the cache and cost up to three times more per frame


def render(id_NP: Tensor, anim_NA: Tensor, size: int = 128) -> Tensor:
    """Draw N frames; id_NP may have one row for all of them. Returns rgb_N3HW float32 in -1..1, differentiable in both arguments."""
    N = max(len(id_NP), len(anim_NA))
    id_NP, anim_NA = id_NP.expand(N, -1), anim_NA.expand(N, -1)
    if N <= CHUNK:
        return draw(id_NP, anim_NA, size)
    return torch.cat([draw(i, a, size) for i, a in zip(id_NP.split(CHUNK), anim_NA.split(CHUNK))])


def mouth_box(size: int = 128) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) in pixels: holds the mouth in every pose, sway included."""
    return size * 16 // 32, size * 28 // 32, size * 8 // 32, size * 24 // 32


def eyes_box(size: int = 128) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) in pixels: holds eyes, brows and glasses in every pose, sway included."""
    return size * 8 // 32, size * 20 // 32, size * 4 // 32, size * 28 // 32


def region_weight(h: int, w: int, mouth: float, eyes: float) -> Tensor:
    """Loss weight [h, w] with mean 1, of pixels or of latent cells: more over mouth and eyes, which fill few cells but carry the face."""
    weight = torch.ones(h, w)
    for box, gain in ((eyes_box(32 * h), eyes), (mouth_box(32 * h), mouth)):
        top, bottom, left, right = (round(v / 32) for v in box)
        weight[top:bottom, left:right] = gain
    return weight / weight.mean()


def to_uint8(rgb: Tensor) -> Tensor:
    """-1..1 to 0..255, rounded."""
    return ((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(rgb: Tensor) -> Tensor:
    """0..255 to float32 in -1..1."""
    return rgb.float() / 127.5 - 1
