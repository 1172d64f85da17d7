"""Draws the neck and what is worn below it: hood, clothes, necklace, scarf."""

from __future__ import annotations

import torch
from torch import Tensor

from everface.train.synthetic.rasterizer import Rasterizer, ellipse, tint


def neck(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    chin = 0.60 + 0.07 * ras.pose["open"]
    neck = torch.maximum(x.abs() - 0.23 - 0.25 * (y - 0.62).clamp(min=0).square() * 4, 0.2 - y)
    shadow = (1 - (y - chin) * (4 + 10 * (1 - ras.shape["shade"]))).clamp(0, 1)
    return torch.lerp(rgb, ras.color["skin"] * ((0.90 - 0.20 * shadow) * ras.rim(neck)), ras.cover(neck))


def hood(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The fold of a hood behind the neck."""
    fold = ellipse(x, y - 0.77, 0.52, 0.21)
    tone = ras.color["cloth"] * ((0.70 + 0.25 * (0.9 - y) * ras.shape["shade"]) * ras.rim(fold))
    return torch.lerp(rgb, tone, ras.cover(fold) * ras.shape["hood"])


def clothes(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Shoulders with a neckline; a broad stripe, a jacket open over a shirt, a tie."""
    s, c = ras.shape, ras.color
    body = ellipse(x, y - 1.32, 0.98, 0.56)
    hole = ellipse(x, y - 0.72, 0.29, 0.06 + s["collar"])
    cloth = torch.maximum(body, -hole)
    ax = x.abs()
    light = 1.05 - 0.22 * ax * s["shade"]
    tone = c["cloth"] * (light * ras.rim(body))
    if ras.has("stripe"):
        tone = torch.lerp(tone, c["accent"] * light, ras.cover((y - 0.925).abs() - 0.05) * s["stripe"])
    if ras.has("lapel"):
        opening = ax - 0.85 * (1.14 - y)
        tone = torch.lerp(tone, tone * 0.74, ras.cover(opening.abs() - 0.045) * s["lapel"])
        tone = torch.lerp(tone, tint(rgb, (0.95, 0.94, 0.91)), ras.cover(opening) * s["lapel"])
    rgb = torch.lerp(rgb, tone, ras.cover(cloth))
    trim = torch.maximum((hole - 0.02).abs() - 0.032, body)
    rgb = torch.lerp(rgb, torch.lerp(c["collar_tone"], tint(rgb, (0.90, 0.89, 0.86)), s["lapel"]), ras.cover(trim))
    if ras.has("tie"):
        down = y - 0.76 - s["collar"]
        tie = torch.maximum(ax - 0.072 + (0.35 * (0.1 - (down - 0.09).abs())).clamp(min=0) - 0.14 * down, -down)
        rgb = torch.lerp(rgb, c["accent"] * ras.rim(tie, 0.02), ras.cover(tie) * s["tie"])
    return rgb


def necklace(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    chain = torch.maximum(ellipse(x, y - 0.68, 0.245, 0.17).abs() - 0.015, 0.76 - y)
    pearl = (x.square() + (y - 0.87).square() + 1e-8).sqrt() - 0.045
    tone = 0.4 * ras.color["accent"] + 0.6 * tint(rgb, (1.0, 0.90, 0.62))
    return torch.lerp(rgb, tone, ras.cover(torch.minimum(chain, pearl)) * ras.shape["necklace"])


def scarf(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Wound once about the neck, one end hanging."""
    s = ras.shape
    ring = ellipse(x, y - 0.75, 0.40, 0.13)
    tail = torch.maximum((x - 0.21 - 0.1 * (y - 0.8)).abs() - 0.10, 0.78 - y)
    tone = ras.color["accent"]
    rgb = torch.lerp(rgb, tone * (0.84 * ras.rim(tail)), ras.cover(tail) * s["scarf"])
    return torch.lerp(rgb, tone * ((1.0 - 1.1 * s["shade"] * (y - 0.72).clamp(min=0)) * ras.rim(ring)), ras.cover(ring) * s["scarf"])
