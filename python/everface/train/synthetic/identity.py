"""Who a character is: colors, shapes, clothes and resting pose, drawn at random."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from everface.train.synthetic import palette
from everface.train.synthetic.rasterizer import MIDDLE_Y

MAX_SWAY = (0.055, 0.04, 0.065)  # of dx, dy and rot: up to here the features stay in their boxes


def sample_identity(n: int, generator: torch.Generator) -> Tensor:
    """Draw n characters. Returns id_NP float32, P = len(IDENTITY). The same generator state gives the same characters."""

    def rand(lo: float, hi: float) -> Tensor:
        return lo + (hi - lo) * torch.rand(n, 1, generator=generator)

    def pick(rows: tuple, jitter: float, odds: tuple | None = None) -> Tensor:
        weight = torch.tensor(odds if odds else (1.0,) * len(rows))
        index = torch.multinomial(weight, n, replacement=True, generator=generator)
        noise = jitter * (torch.rand(n, len(rows[0]), generator=generator) - 0.5)
        return torch.tensor(rows)[index] + noise

    skin, hair, iris = pick(palette.SKIN, 0.05), pick(palette.HAIR, 0.08, palette.HAIR_COLOR_ODDS), pick(palette.IRIS, 0.06)
    lips = 0.62 * pick(palette.LIPS, 0.06) + 0.38 * skin * torch.tensor([1.0, 0.72, 0.72])
    cloth, sky = pick(palette.CLOTH, 0.10), pick(palette.SKY, 0.10)
    trim = torch.where(rand(0, 1) < 0.5, cloth * 0.72, cloth * 0.4 + 0.58)
    ground = sky * rand(0.62, 0.85) + torch.tensor([0.02, 0.0, 0.04])
    style = pick(palette.HAIR_STYLES, 0.0, palette.HAIR_ODDS)
    alpha, volume, length, line, part, swoop, curl = style.split(1, 1)
    side = torch.where(rand(0, 1) < 0.5, -1.0, 1.0)
    # the scene behind them, and the drawing style
    scene, scene_side = pick(palette.SCENES, 0.0, palette.SCENE_ODDS), torch.where(rand(0, 1) < 0.5, -1.0, 1.0)
    ground = torch.where(rand(0, 1) < 0.45, pick(palette.SKY, 0.10), ground)
    hand = pick(palette.STYLES, 0.0, palette.STYLE_ODDS)
    ink, shade, eye_scale, iris_scale, brow_scale = (hand * (1 - 0.08 * torch.rand(n, 1, generator=generator))).split(1, 1)
    # beard, hat and clothes
    short = length < 0.1
    beard = torch.where(short, pick(palette.BEARDS, 0.0, palette.BEARD_ODDS), pick(palette.BEARDS, 0.0, palette.LONG_HAIR_BEARD_ODDS))
    hat, clothes = pick(palette.HATS, 0.0, palette.HAT_ODDS), pick(palette.CLOTHES, 0.0, palette.CLOTHES_ODDS)
    volume = torch.where((hat[:, :1] > 0) & (hat[:, 2:3] > 1), volume * 0.5, volume * rand(0.85, 1.15))
    collar = torch.where(clothes[:, 1:2] + clothes[:, 3:4] > 0, 0.05, rand(0.06, 0.26))
    accent, frame = pick(palette.ACCENT, 0.08), pick(palette.FRAME, 0.04)
    eye_size, brow_width, brow_arch = rand(0.92, 1.08) * eye_scale, rand(0.022, 0.040) * brow_scale, rand(0.02, 0.06)
    mouth_w = rand(0.235, 0.275)
    shapes = [
        rand(0.585, 0.645), rand(0.655, 0.70), rand(0.10, 0.30), rand(0.27, 0.295), eye_size, brow_width,
        brow_arch, rand(-0.03, 0.03), mouth_w, rand(0.045, 0.072), rand(0.8, 1.25),
        (rand(0, 1) < 0.25).float(), collar,
        alpha, volume, length, line + rand(-0.03, 0.03), part * side, swoop * rand(0.85, 1.15), curl,
        rand(0.85, 1.15), rand(0.10, 0.34),
        ink, shade, iris_scale,
        *_resting_pose(rand, eye_size, brow_width, brow_arch, mouth_w),
        beard, (rand(0, 1) < 0.25).float(), (rand(0, 1) < 0.45).float(), rand(0.013, 0.023),
        hat, clothes.float(),
        scene.float(), scene_side * rand(0.45, 0.75), rand(-0.15, 0.45),
    ]  # fmt: skip
    colors = torch.cat([skin, hair, iris, lips, cloth, trim, sky, ground, accent, frame], 1).clamp(0.03, 0.99)
    return torch.cat([colors, *shapes], 1)


def _resting_pose(
    rand: Callable[[float, float], Tensor], eye_size: Tensor, brow_width: Tensor, brow_arch: Tensor, mouth_w: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Resting pose of a head: dx, dy up to 0.05, tilt up to 4 degrees, scale 0.93-1.05; less where brows or the corners of the mouth would
    leave their boxes at the end of the sway (`MAX_SWAY`)."""
    dx, dy, rot = MAX_SWAY
    tilt = rand(-0.07, 0.07)
    brow = MIDDLE_Y + 0.345 + 0.10 * (eye_size - 1.08).clamp(min=0) + brow_width + brow_arch  # from the middle of the face upwards
    corner = 1.3 * mouth_w + 0.04  # from the middle sideways
    up = 0.5 + MIDDLE_Y - dy - 0.30 * (rot + tilt.abs())  # room for each, before the offset
    aside = 0.5 - dx - 0.40 * rot - 0.23 * tilt.abs()
    scale = rand(0.93, 1.05).minimum((up + 0.05) / brow).minimum(aside / corner)
    offset = rand(-0.05, 0.05).maximum(scale * brow - up)
    room = (aside - scale * corner).clamp(0, 0.05)
    return rand(-1, 1) * room, offset, tilt, scale
