"""Draws a character from the back to the front: scene, hair behind, neck, clothes, head, features, hair, hat."""

from __future__ import annotations

import torch
from torch import Tensor

from everface.train.synthetic import face as features
from everface.train.synthetic.rasterizer import Canvas, ellipse, tint


def draw(id_NP: Tensor, anim_NA: Tensor, size: int) -> Tensor:
    """One batch of frames. Returns rgb_N3HW float32 in -1..1."""
    f = Canvas(id_NP, anim_NA, size)
    rgb = _scene(f)
    s = f.shape
    if f.has("hair_alpha"):
        rgb = _hair_behind(f, rgb)
    if f.has("hood"):
        f.paint(rgb, (-0.58, 0.58, 0.50, 1.02), _hood, body=True)
    f.paint(rgb, (-0.52, 0.52, 0.16, 1.2), _neck, body=True)
    f.paint(rgb, (-1.1, 1.1, 0.72, 1.25), _clothes, body=True)
    if f.has("necklace"):
        f.paint(rgb, (-0.34, 0.34, 0.70, 0.98), _necklace, body=True)
    if f.has("scarf"):
        f.paint(rgb, (-0.50, 0.50, 0.55, 1.25), _scarf, body=True)
    f.paint(rgb, (-0.80, 0.80, -0.18, 0.22), _ears)
    f.paint(rgb, (-0.72, 0.72, -0.82, 0.80), features.skin)
    f.paint(rgb, (-0.22, 0.22, -0.12, 0.28), features.nose)
    if f.has("beard", "moustache"):
        f.paint(rgb, (-0.72, 0.72, -0.08, 0.80), features.beard)
    f.paint(rgb, (-0.43, 0.43, 0.06, 0.68), features.mouth)
    f.paint(rgb, (-0.64, 0.64, -0.54, 0.20), features.eyes)
    if f.has("glasses"):
        f.paint(rgb, (-0.72, 0.72, -0.32, 0.20), features.glasses)
    if f.has("earring"):
        f.paint(rgb, (-0.80, 0.80, 0.08, 0.30), _earrings)
    if f.has("hair_alpha"):
        reach = float((s["hair_line"] + 1.5 * s["hair_swoop"] + (s["hair_length"] + 0.32).clamp(min=0)).detach().max()) + 0.1
        f.paint(rgb, (-0.90, 0.90, -1.1, reach), _hair)
    if f.has("hat"):
        f.paint(rgb, (-1.05, 1.05, -1.15, -0.20), _hat)
    return rgb.clamp(0, 1) * 2 - 1


def _scene(f: Canvas) -> Tensor:
    """Two tones and light: a gradient, a horizon, a disc or a band in the second tone, a window, dark corners."""
    s, c, u, v = f.shape, f.colour, f.u, f.v
    t = (v + 1) * 0.5
    light = 0.07 * s["shade"] * torch.exp(-1.6 * (u.square() + (v + 0.1).square()))
    if f.has("horizon"):
        t = torch.lerp(t, ((v - s["scene_y"]) * 9 + 0.5).clamp(0, 1), s["horizon"])
    if f.has("disc", "band"):
        disc = ((0.86 - (u.square() + (v + 0.15).square() + 1e-8).sqrt()) * 16 + 0.5).clamp(0, 1) * s["disc"]
        band = ((0.24 - (0.8 * u + 0.6 * v - s["scene_x"]).abs()) * 14 + 0.5).clamp(0, 1) * s["band"]
        figure = torch.maximum(disc, band)
        t = t * (1 - 0.65 * torch.maximum(s["disc"], s["band"]))
        t = t + figure * (1 - t)
    if f.has("window"):
        pane = torch.maximum((u - s["scene_x"]).abs() - 0.30, (v + 0.38).abs() - 0.44)
        light = light + 0.24 * s["window"] * (0.5 - pane * 12).clamp(0, 1)
    if f.has("vignette"):
        light = light - 0.15 * s["vignette"] * (u.square() + v.square())
    return torch.lerp(c["sky"], c["ground"], t) + light


def _hair_behind(f: Canvas, rgb: Tensor) -> Tensor:
    """Hair behind the head, down to its length."""
    s, x, y = f.shape, f.x, f.y
    width = s["face_w"] + s["hair_volume"] * 0.8 - 0.06 * (y - 0.2).square()
    fall = torch.maximum(x.abs() - width, torch.maximum(y - s["hair_length"], -0.2 - y))
    behind = torch.minimum(torch.maximum(_cap(f, x, y), y - s["hair_length"] - 0.3), fall)
    tone = f.colour["hair"] * (0.72 * f.rim(behind))
    return torch.lerp(rgb, tone, f.cover(behind) * s["hair_alpha"].floor())


def _cap(f: Canvas, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the outline of the hair."""
    s = f.shape
    cap = ellipse(x, y + 0.17, s["face_w"] + s["hair_volume"], 0.62 + s["hair_volume"])
    if f.has("hair_curl"):
        cap = cap + 0.018 * s["hair_curl"] * torch.sin(19 * x) * torch.sin(19 * y + 1)
    return cap


def _neck(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    chin = 0.60 + 0.07 * f.pose["open"]
    neck = torch.maximum(x.abs() - 0.23 - 0.25 * (y - 0.62).clamp(min=0).square() * 4, 0.2 - y)
    shadow = (1 - (y - chin) * (4 + 10 * (1 - f.shape["shade"]))).clamp(0, 1)
    return torch.lerp(rgb, f.colour["skin"] * ((0.90 - 0.20 * shadow) * f.rim(neck)), f.cover(neck))


def _hood(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The fold of a hood that lies behind the neck."""
    fold = ellipse(x, y - 0.77, 0.52, 0.21)
    tone = f.colour["cloth"] * ((0.70 + 0.25 * (0.9 - y) * f.shape["shade"]) * f.rim(fold))
    return torch.lerp(rgb, tone, f.cover(fold) * f.shape["hood"])


def _clothes(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Shoulders with a neckline; a broad stripe, a jacket open over a shirt, a tie."""
    s, c = f.shape, f.colour
    body = ellipse(x, y - 1.32, 0.98, 0.56)
    hole = ellipse(x, y - 0.72, 0.29, 0.06 + s["collar"])
    cloth = torch.maximum(body, -hole)
    ax = x.abs()
    light = 1.05 - 0.22 * ax * s["shade"]
    tone = c["cloth"] * (light * f.rim(body))
    if f.has("stripe"):
        tone = torch.lerp(tone, c["accent"] * light, f.cover((y - 0.925).abs() - 0.05) * s["stripe"])
    if f.has("lapel"):
        opening = ax - 0.85 * (1.14 - y)
        tone = torch.lerp(tone, tone * 0.74, f.cover(opening.abs() - 0.045) * s["lapel"])
        tone = torch.lerp(tone, tint(rgb, (0.95, 0.94, 0.91)), f.cover(opening) * s["lapel"])
    rgb = torch.lerp(rgb, tone, f.cover(cloth))
    trim = torch.maximum((hole - 0.02).abs() - 0.032, body)
    rgb = torch.lerp(rgb, torch.lerp(c["collar_tone"], tint(rgb, (0.90, 0.89, 0.86)), s["lapel"]), f.cover(trim))
    if f.has("tie"):
        down = y - 0.76 - s["collar"]
        tie = torch.maximum(ax - 0.072 + (0.35 * (0.1 - (down - 0.09).abs())).clamp(min=0) - 0.14 * down, -down)
        rgb = torch.lerp(rgb, c["accent"] * f.rim(tie, 0.02), f.cover(tie) * s["tie"])
    return rgb


def _necklace(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    chain = torch.maximum(ellipse(x, y - 0.68, 0.245, 0.17).abs() - 0.015, 0.76 - y)
    pearl = (x.square() + (y - 0.87).square() + 1e-8).sqrt() - 0.045
    tone = 0.4 * f.colour["accent"] + 0.6 * tint(rgb, (1.0, 0.90, 0.62))
    return torch.lerp(rgb, tone, f.cover(torch.minimum(chain, pearl)) * f.shape["necklace"])


def _scarf(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Wound once about the neck, one end hanging."""
    s = f.shape
    ring = ellipse(x, y - 0.75, 0.40, 0.13)
    tail = torch.maximum((x - 0.21 - 0.1 * (y - 0.8)).abs() - 0.10, 0.78 - y)
    tone = f.colour["accent"]
    rgb = torch.lerp(rgb, tone * (0.84 * f.rim(tail)), f.cover(tail) * s["scarf"])
    return torch.lerp(rgb, tone * ((1.0 - 1.1 * s["shade"] * (y - 0.72).clamp(min=0)) * f.rim(ring)), f.cover(ring) * s["scarf"])


def _ears(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    s = f.shape
    ear = ellipse(x.abs() - s["face_w"] * 0.99, y - 0.02, 0.085 * s["ear"], 0.135 * s["ear"])
    return torch.lerp(rgb, f.colour["skin"] * ((0.90 - 1.4 * (-ear - 0.015).clamp(0, 0.12)) * f.rim(ear, 0.03)), f.cover(ear))


def _earrings(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    disc = ((x.abs() - 0.985 * f.shape["face_w"]).square() + (y - 0.19).square() + 1e-8).sqrt() - 0.046
    tone = 0.35 * f.colour["accent"] + 0.65 * tint(rgb, (1.0, 0.92, 0.68))
    return torch.lerp(rgb, tone * f.rim(disc, 0.012), f.cover(disc) * f.shape["earring"])


def _hair(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Hair in front: the cap above the hair line, and locks along the cheeks for the longer styles."""
    s, c, ax = f.shape, f.colour, x.abs()
    side = ((ax - s["face_w"] * 0.86) * 9).clamp(0, 1)
    line = s["hair_line"] + s["hair_swoop"] * (x - s["hair_part"]).square() + 0.03 * s["hair_curl"] * torch.sin(17 * x)
    lock = (s["hair_length"] + 0.32).clamp(min=0)
    steep = 1 + 9 * lock * ((side > 0) & (side < 1))  # y - edge, as a distance
    below = (y - line - side * lock) / steep
    front = _cap(f, x, y).minimum((ax - s["face_w"] - s["hair_volume"] * 0.8).maximum(-0.2 - y)).maximum(below)
    front = front.maximum(features.skull(f, x, y) - 4 * s["hair_alpha"].floor())  # a shaved head keeps the skull's outline
    strand = torch.sin(15 * (x - s["hair_part"]) + 4 * y) * 0.07 + 0.22 * torch.exp(-((y + 0.66 - 0.25 * x * x) / 0.09).square())
    strand = strand * s["shade"]
    tone = (c["hair"] * (1 + strand) + 0.12 * strand) * f.rim(front)
    return torch.lerp(rgb, tone, f.cover(front, 1.3) * s["hair_alpha"])


def _hat(f: Canvas, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Beanie, cap, brimmed hat or headband: the outline of the hair, a little larger, between its line and its height."""
    s, c = f.shape, f.colour
    tone = c["accent"] * (1.04 - s["shade"] * (0.16 * x.square() - 0.12 * (y + 0.6)))
    trim = torch.lerp(tone * 0.80, c["collar_tone"], 0.35)
    if f.has("hat_bobble"):
        bobble = (x.square() + (y + 0.83 + s["hair_volume"]).square() + 1e-8).sqrt() - s["hat_bobble"]
        rgb = torch.lerp(rgb, trim * f.rim(bobble, 0.03), f.cover(bobble, 1.5) * (20 * s["hat_bobble"]).clamp(max=1))
    line = s["hat_line"] + 0.12 * x.square()
    crown = ellipse(x, y + 0.17, s["face_w"] + s["hair_volume"] + 0.03, 0.65 + s["hair_volume"])
    hat = torch.maximum(crown.maximum(y - line), line - s["hat_height"] - y)
    fill = torch.lerp(tone, trim, f.cover(line - 0.15 - y) * s["hat_fold"])
    rgb = torch.lerp(rgb, fill * f.rim(hat), f.cover(hat) * s["hat"])
    if f.has("hat_brim"):
        brim = ellipse(x, y - s["hat_line"] - 0.02 - 0.10 * x.square(), 0.05 + s["hat_brim"], 0.095)
        rgb = torch.lerp(rgb, trim * f.rim(brim, 0.025), f.cover(brim) * (4 * s["hat_brim"]).clamp(max=1))
    return rgb
