"""Draws a character from the back to the front: scene, hair behind, neck, clothes, head, features, hair, hat."""

from __future__ import annotations

import torch
from torch import Tensor

from everface.train.synthetic import clothing, face, hair
from everface.train.synthetic.rasterizer import Rasterizer


def draw(id_NP: Tensor, anim_NA: Tensor, size: int) -> Tensor:
    """One batch of frames. Returns rgb_N3HW float32 in -1..1."""
    ras = Rasterizer(id_NP, anim_NA, size)
    rgb = _scene(ras)
    s = ras.shape
    if ras.has("hair_alpha"):
        rgb = hair.hair_behind(ras, rgb)
    if ras.has("hood"):
        ras.paint(rgb, (-0.58, 0.58, 0.50, 1.02), clothing.hood, body=True)
    ras.paint(rgb, (-0.52, 0.52, 0.16, 1.2), clothing.neck, body=True)
    ras.paint(rgb, (-1.1, 1.1, 0.72, 1.25), clothing.clothes, body=True)
    if ras.has("necklace"):
        ras.paint(rgb, (-0.34, 0.34, 0.70, 0.98), clothing.necklace, body=True)
    if ras.has("scarf"):
        ras.paint(rgb, (-0.50, 0.50, 0.55, 1.25), clothing.scarf, body=True)
    ras.paint(rgb, (-0.80, 0.80, -0.18, 0.22), face.ears)
    ras.paint(rgb, (-0.72, 0.72, -0.82, 0.80), face.skin)
    ras.paint(rgb, (-0.22, 0.22, -0.12, 0.28), face.nose)
    if ras.has("beard", "moustache"):
        ras.paint(rgb, (-0.72, 0.72, -0.08, 0.80), face.beard)
    ras.paint(rgb, (-0.43, 0.43, 0.06, 0.68), face.mouth)
    ras.paint(rgb, (-0.64, 0.64, -0.54, 0.20), face.eyes)
    if ras.has("glasses"):
        ras.paint(rgb, (-0.72, 0.72, -0.32, 0.20), face.glasses)
    if ras.has("earring"):
        ras.paint(rgb, (-0.80, 0.80, 0.08, 0.30), face.earrings)
    if ras.has("hair_alpha"):
        reach = float((s["hair_line"] + 1.5 * s["hair_swoop"] + (s["hair_length"] + 0.32).clamp(min=0)).detach().max()) + 0.1
        ras.paint(rgb, (-0.90, 0.90, -1.1, reach), hair.hair)
    if ras.has("hat"):
        ras.paint(rgb, (-1.05, 1.05, -1.15, -0.20), hair.hat)
    return rgb.clamp(0, 1) * 2 - 1


def _scene(ras: Rasterizer) -> Tensor:
    """Two tones and light: a gradient, a horizon, a disc or a band in the second tone, a window, dark corners."""
    s, c, u, v = ras.shape, ras.color, ras.u, ras.v
    t = (v + 1) * 0.5
    light = 0.07 * s["shade"] * torch.exp(-1.6 * (u.square() + (v + 0.1).square()))
    if ras.has("horizon"):
        t = torch.lerp(t, ((v - s["scene_y"]) * 9 + 0.5).clamp(0, 1), s["horizon"])
    if ras.has("disc", "band"):
        disc = ((0.86 - (u.square() + (v + 0.15).square() + 1e-8).sqrt()) * 16 + 0.5).clamp(0, 1) * s["disc"]
        band = ((0.24 - (0.8 * u + 0.6 * v - s["scene_x"]).abs()) * 14 + 0.5).clamp(0, 1) * s["band"]
        figure = torch.maximum(disc, band)
        t = t * (1 - 0.65 * torch.maximum(s["disc"], s["band"]))
        t = t + figure * (1 - t)
    if ras.has("window"):
        pane = torch.maximum((u - s["scene_x"]).abs() - 0.30, (v + 0.38).abs() - 0.44)
        light = light + 0.24 * s["window"] * (0.5 - pane * 12).clamp(0, 1)
    if ras.has("vignette"):
        light = light - 0.15 * s["vignette"] * (u.square() + v.square())
    return torch.lerp(c["sky"], c["ground"], t) + light
