"""Eyebrows, painted hair by hair on the face's texture."""

from __future__ import annotations

import numpy as np

from everface.train.heads.person.identity import Person

SCALE = 2  # strokes are drawn at twice the texture's size
HAIRS = 230  # a brow, at weight 1


def paint_brows(person: Person, color: np.ndarray) -> np.ndarray:
    """Both brows over sRGB color [S, S, 3]: thin strokes that turn from upright at the nose to level at the temple."""
    from PIL import Image, ImageDraw

    rng = np.random.Generator(np.random.PCG64([person.seed, 3]))
    side = color.shape[0] * SCALE
    cover = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(cover)
    length, thick = rng.uniform(0.19, 0.225), 0.017 * person.brow_weight
    gap, rise, lift = rng.uniform(0.045, 0.065), 0.012 + 0.022 * person.brow_arch, rng.uniform(-0.006, 0.006)
    peak = rng.uniform(0.55, 0.72)
    for sign in (-1, 1):
        for _ in range(int(HAIRS * (0.6 + 0.4 * person.brow_weight))):
            t = rng.beta(1.0, 1.15)
            across = rng.uniform(-1, 1)
            width = thick * (0.75 + 0.45 * np.sin(np.pi * min(1.0, t + 0.25))) * (1 - 0.75 * max(0.0, t - 0.55) / 0.45)
            arch = rise * (np.sin(np.pi / 2 * t / peak) if t < peak else np.cos(np.pi / 2 * (t - peak) / (1 - peak) * 0.9))
            x = 0.497 + sign * (gap + length * t)
            y = 0.2375 + lift - arch + across * width * 0.55
            angle = np.radians(72 * (1 - t) ** 1.6 + 14 - 34 * t + 10 * across * (1 - t) + rng.normal(0, 8))
            size = rng.uniform(0.011, 0.019) * (0.8 + 0.3 * person.brow_weight)
            end = (x + sign * size * np.cos(angle), y - size * np.sin(angle))
            ink = int(np.clip(rng.normal(150, 35) * (0.7 + 0.35 * person.brow_weight), 40, 255))
            draw.line([x * side, y * side, end[0] * side, end[1] * side], fill=ink, width=2)
    alpha = np.asarray(cover.resize(color.shape[1::-1], Image.Resampling.BOX), np.float32)[..., None] / 255
    soft = np.asarray(cover.resize((color.shape[1] // 8,) * 2, Image.Resampling.BOX).resize(color.shape[1::-1], Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    alpha = np.clip(0.8 * alpha + 0.5 * soft, 0, 0.92)
    return color * (1 - alpha) + alpha * person.brow_color
