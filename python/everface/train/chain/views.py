"""Other views of a rendered clip: mirrored, framed, bent and colored differently, with the same audio.

A clip takes five times as long to render as to change and encode, so a transformer that knows its clips by heart is shown them as other people
would look: another side, other light and skin, a head that is larger, tilted or off the middle, other proportions of the face.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.train.data.drawn import clip_generator

VIEW_SEED = 7_000_000  # no clip is drawn with it
ZOOM, TILT, SHIFT = 0.08, math.radians(4), 0.05  # at most; the shift in half widths of the image
BEND, BENDS = 0.03, 5  # deviation of the points of a square grid, in half widths, and points a side: between them the image is bent smoothly
HUE, SATURATION, GAIN, GAMMA = math.radians(15), 0.3, 0.07, 0.12  # the first two at most, then deviations of logarithms
TO_OPPONENT = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # luma and two axes of color
FRAMES_AT_ONCE = 16


def other_view(video_3THW: Tensor, clip: int, view: int) -> Tensor:
    """Frames -1..1, of clip number `clip`, as view 1, 2 ... shows them: every frame alike, odd views mirrored."""
    rng = clip_generator(VIEW_SEED + view, clip)
    place_23, (matrix_33, gain_3, gamma) = _placement(rng, mirrored=mirrors(view)), _colors(rng)
    device, size = video_3THW.device, list(video_3THW.shape[-2:])
    grid_1HW2 = F.affine_grid(place_23[None], [1, 3, *size], align_corners=False) + _bend(rng, size)
    frames = video_3THW.movedim(1, 0).split(FRAMES_AT_ONCE)
    return torch.cat([_color(_place(part, grid_1HW2.to(device)), matrix_33.to(device), gain_3.to(device), gamma) for part in frames]).movedim(1, 0)


def mirrors(view: int) -> bool:
    return view % 2 == 1


def _placement(rng: torch.Generator, *, mirrored: bool) -> Tensor:
    """Where each pixel comes from, [2, 3] of `affine_grid`."""
    zoom, tilt, x, y = (torch.rand(4, generator=rng) * 2 - 1).tolist()
    scale, angle = math.exp(-ZOOM * zoom), TILT * tilt
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    side = -1.0 if mirrored else 1.0
    return torch.tensor([[side * cosine, -side * sine, SHIFT * x], [sine, cosine, SHIFT * y]])


def _bend(rng: torch.Generator, size: list[int]) -> Tensor:
    """What is added to where each pixel comes from, [1, H, W, 2]."""
    points = BEND * torch.randn(1, 2, BENDS, BENDS, generator=rng)
    return F.interpolate(points, size, mode="bicubic", align_corners=True).movedim(1, -1)


def _colors(rng: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """A matrix [3, 3] and gains [3] of RGB, and an exponent."""
    hue, saturation = (torch.rand(2, generator=rng) * 2 - 1).tolist()
    gain_3, gamma = torch.randn(3, generator=rng), torch.randn((), generator=rng).item()
    much, angle = 1 + SATURATION * saturation, HUE * hue
    turn = torch.eye(3)
    turn[1:, 1:] = much * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return torch.linalg.inv(TO_OPPONENT) @ turn @ TO_OPPONENT, (GAIN * gain_3).exp(), math.exp(GAMMA * gamma)


def _place(frames_T3HW: Tensor, grid_1HW2: Tensor) -> Tensor:
    """What lies outside is mirrored at the border."""
    return F.grid_sample(frames_T3HW, grid_1HW2.expand(len(frames_T3HW), -1, -1, -1), mode="bicubic", padding_mode="reflection", align_corners=False)


def _color(frames_T3HW: Tensor, matrix_33: Tensor, gain_3: Tensor, gamma: float) -> Tensor:
    rgb = torch.einsum("ij,tjhw->tihw", matrix_33, (frames_T3HW + 1) / 2) * gain_3[:, None, None]
    return 2 * rgb.clamp(0, 1).pow(gamma) - 1
