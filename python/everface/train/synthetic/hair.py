"""Draws hair behind and in front of the head, and hats."""

from __future__ import annotations

import torch
from torch import Tensor

from everface.train.synthetic.face import skull
from everface.train.synthetic.rasterizer import Rasterizer, ellipse


def hair_behind(ras: Rasterizer, rgb: Tensor) -> Tensor:
    """Hair behind the head, down to its length."""
    s, x, y = ras.shape, ras.x, ras.y
    width = s["face_w"] + s["hair_volume"] * 0.8 - 0.06 * (y - 0.2).square()
    fall = torch.maximum(x.abs() - width, torch.maximum(y - s["hair_length"], -0.2 - y))
    behind = torch.minimum(torch.maximum(cap(ras, x, y), y - s["hair_length"] - 0.3), fall)
    tone = ras.color["hair"] * (0.72 * ras.rim(behind))
    return torch.lerp(rgb, tone, ras.cover(behind) * s["hair_alpha"].floor())


def cap(ras: Rasterizer, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the outline of the hair."""
    s = ras.shape
    cap = ellipse(x, y + 0.17, s["face_w"] + s["hair_volume"], 0.62 + s["hair_volume"])
    if ras.has("hair_curl"):
        cap = cap + 0.018 * s["hair_curl"] * torch.sin(19 * x) * torch.sin(19 * y + 1)
    return cap


def hair(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Hair in front: the cap above the hair line, and locks along the cheeks for the longer styles."""
    s, c, ax = ras.shape, ras.color, x.abs()
    side = ((ax - s["face_w"] * 0.86) * 9).clamp(0, 1)
    line = s["hair_line"] + s["hair_swoop"] * (x - s["hair_part"]).square() + 0.03 * s["hair_curl"] * torch.sin(17 * x)
    lock = (s["hair_length"] + 0.32).clamp(min=0)
    steep = 1 + 9 * lock * ((side > 0) & (side < 1))  # y - edge, as a distance
    below = (y - line - side * lock) / steep
    front = cap(ras, x, y).minimum((ax - s["face_w"] - s["hair_volume"] * 0.8).maximum(-0.2 - y)).maximum(below)
    front = front.maximum(skull(ras, x, y) - 4 * s["hair_alpha"].floor())  # a shaved head keeps the skull's outline
    strand = torch.sin(15 * (x - s["hair_part"]) + 4 * y) * 0.07 + 0.22 * torch.exp(-((y + 0.66 - 0.25 * x * x) / 0.09).square())
    strand = strand * s["shade"]
    tone = (c["hair"] * (1 + strand) + 0.12 * strand) * ras.rim(front)
    return torch.lerp(rgb, tone, ras.cover(front, 1.3) * s["hair_alpha"])


def hat(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Beanie, cap, brimmed hat or headband: the outline of the hair, a little larger, between its line and its height."""
    s, c = ras.shape, ras.color
    tone = c["accent"] * (1.04 - s["shade"] * (0.16 * x.square() - 0.12 * (y + 0.6)))
    trim = torch.lerp(tone * 0.80, c["collar_tone"], 0.35)
    if ras.has("hat_bobble"):
        bobble = (x.square() + (y + 0.83 + s["hair_volume"]).square() + 1e-8).sqrt() - s["hat_bobble"]
        rgb = torch.lerp(rgb, trim * ras.rim(bobble, 0.03), ras.cover(bobble, 1.5) * (20 * s["hat_bobble"]).clamp(max=1))
    line = s["hat_line"] + 0.12 * x.square()
    crown = ellipse(x, y + 0.17, s["face_w"] + s["hair_volume"] + 0.03, 0.65 + s["hair_volume"])
    hat = torch.maximum(crown.maximum(y - line), line - s["hat_height"] - y)
    fill = torch.lerp(tone, trim, ras.cover(line - 0.15 - y) * s["hat_fold"])
    rgb = torch.lerp(rgb, fill * ras.rim(hat), ras.cover(hat) * s["hat"])
    if ras.has("hat_brim"):
        brim = ellipse(x, y - s["hat_line"] - 0.02 - 0.10 * x.square(), 0.05 + s["hat_brim"], 0.095)
        rgb = torch.lerp(rgb, trim * ras.rim(brim, 0.025), ras.cover(brim) * (4 * s["hat_brim"]).clamp(max=1))
    return rgb
