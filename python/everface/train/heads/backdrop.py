"""What is behind a person: blurred rooms, walls, greenery and studio paper, from noise and rectangles."""

from __future__ import annotations

import numpy as np

SIDE = 160


def make_backdrop(seed: int) -> np.ndarray:
    """sRGB [160, 160, 3] uint8."""
    from PIL import Image, ImageDraw, ImageFilter

    rng = np.random.Generator(np.random.PCG64([seed, 8]))
    kind = rng.choice(["paper", "wall", "room", "outside"], p=(0.2, 0.25, 0.35, 0.2))
    tone = rng.uniform(0.15, 0.75) * (1 + rng.normal(0, 0.07, 3))
    y, x = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
    if kind == "paper":
        middle = rng.uniform(0.3, 0.7, 2)
        glow = 1.15 - rng.uniform(0.2, 0.9) * np.hypot(x - middle[0], y - middle[1])
        image = tone * glow[..., None]
    else:
        slope = rng.uniform(-0.35, 0.35, 2)
        image = tone * (1 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5))[..., None]
    canvas = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)

    def fill(base: np.ndarray, variety: float) -> tuple[int, ...]:
        base = base.mean() + 0.35 * (base - base.mean())  # surroundings are duller than paint
        return tuple(int(255 * v) for v in np.clip(base * rng.uniform(1 - variety, 1 + variety) + rng.normal(0, 0.025, 3), 0, 1))

    if kind == "room":
        for _ in range(rng.integers(4, 12)):
            left, top = rng.uniform(-0.2, 1, 2) * SIDE
            w, h = rng.uniform(0.05, 0.45, 2) * SIDE
            draw.rectangle([left, top, left + w, top + h], fill=fill(tone if rng.random() < 0.6 else rng.uniform(0.05, 0.9, 3), 0.6))
        if rng.random() < 0.5:  # a window
            left, top = rng.uniform(-0.1, 0.8) * SIDE, rng.uniform(-0.1, 0.2) * SIDE
            draw.rectangle([left, top, left + 0.3 * SIDE, top + 0.5 * SIDE], fill=fill(np.array([0.85, 0.9, 0.95]), 0.1))
    elif kind == "outside":
        green = np.array([0.25, 0.36, 0.16]) * rng.uniform(0.6, 1.5)
        for _ in range(90):
            cx, cy, r = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(4, 16)
            base = green if rng.random() < 0.75 or cy > 0.5 * SIDE else np.array([0.75, 0.82, 0.9])
            draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=fill(base, 0.45))
    blur = {"paper": 3, "wall": 5, "room": rng.uniform(2.5, 9), "outside": rng.uniform(5, 9)}[kind]
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(float(blur))))
