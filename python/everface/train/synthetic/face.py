"""Draws the face: ears, skin, nose, beard, mouth, eyes with brows, glasses, earrings. Each function paints one bounding box.

Both eyes share one formula, and the mouth is painted over the beard, so that both can be read in every style.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everface.train.synthetic.rasterizer import Rasterizer, bump, ellipse, tint


def skull(ras: Rasterizer, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the face: an ellipse that narrows towards the jaw and follows the opening mouth."""
    s, fy = ras.shape, y + 0.06
    down = (fy * 1.5).clamp(0, 1)
    return ellipse(x, fy, s["face_w"] * (1 - s["jaw"] * down * down), s["face_h"] + 0.08 * ras.pose["open"] * down)


def skin(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The face with its shading and blush."""
    s, face = ras.shape, skull(ras, x, y)
    light = 0.97 + s["shade"] * (0.06 - 0.06 * x - 0.05 * y - 0.16 * (1 + 5.0 * face).clamp(0, 1).square())
    tone = ras.color["skin"] * light
    blush = torch.exp(-((x.abs() - 0.36).square() + (y - 0.20).square()) * 55) * s["blush"] * (0.4 + 0.6 * s["shade"])
    tone = tone * (1 - blush * (1 - tint(rgb, (1.06, 0.72, 0.70))))
    return torch.lerp(rgb, tone * ras.rim(face), ras.cover(face))


def nose(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A soft shadow under the tip and light on the bridge; in the flat styles one simple spot."""
    s, ny = ras.shape, y - 0.17
    under = bump(x, ny - 0.005, 0.13 * s["nose"], 0.046)
    bridge = bump(x + 0.01, ny + 0.09, 0.066, 0.146)
    spot = ras.cover(ellipse(x, ny, 0.068 * s["nose"], 0.030), 2.0)
    return rgb * (1 - s["shade"] * (0.36 * under - 0.08 * bridge) - (1 - s["shade"]) * 0.20 * spot)


def beard(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A soft patch along the jaw (goatee to full) and a moustache that rises with the upper lip. Stubble is a thin beard."""
    s, c, ax = ras.shape, ras.color, x.abs()
    face = skull(ras, x, y)
    hair = c["hair"] * 0.80
    top = (0.47 - 1.5 * x.square()).clamp(min=0.04)
    patch = ras.cover(torch.maximum(top - y, ax - s["beard_width"]), 3.5) * ras.cover(face)
    rgb = torch.lerp(rgb, hair * ras.rim(face), patch * s["beard"])
    lip = 0.33 - s["lip_full"] - 0.07 * ras.pose["open"]
    lip = torch.maximum((y - lip + 0.01 - 0.9 * x.square()).abs() - 0.048 * (1 - (x / 0.30).square()), ax - 0.26)
    tone = 0.70 * hair + 0.30 * c["skin"]  # not as dark as an open mouth
    return torch.lerp(rgb, tone, ras.cover(lip, 2.0) * s["moustache"])


def mouth(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Lips, the dark of the mouth, teeth and tongue."""
    s, c, pose = ras.shape, ras.color, ras.pose
    open_, half_w = pose["open"], s["mouth_w"] * (0.70 + 0.60 * pose["wide"])
    up, low = 0.115 * open_, 0.195 * open_
    base = 0.33 - 0.035 * (x / half_w).square() * (0.35 + pose["wide"])  # corners lift when the mouth spreads
    t2 = (x / half_w).square()
    arch = (1 - t2) * (1 + 0.4 * t2)
    o2 = (x / (half_w + 0.035)).square()
    outer = (1 - o2) * (1 + 0.3 * o2)
    bow = 0.016 * torch.exp(-(x / 0.045).square())
    full = s["lip_full"]
    lips = torch.maximum(base - (up + full) * outer + bow - y, y - base - (low + full * 1.25) * outer)
    lips = torch.maximum(lips, x.abs() - half_w - 0.022)
    gloss = torch.exp(-(x / 0.12).square() - ((y - base - low - 0.6 * full) / 0.022).square())
    tone = c["lips"] * (1.06 - 0.9 * (base - y).clamp(0, 0.14)) + 0.16 * s["shade"] * gloss
    rgb = torch.lerp(rgb, tone, ras.cover(lips))
    line = torch.maximum((y - base).abs() - 0.012 - 0.004 * s["ink"], x.abs() - half_w)
    rgb = torch.lerp(rgb, c["lips"] * 0.42, ras.cover(line))
    top, bottom = base - up * arch, base + low * arch
    hole = torch.maximum(torch.maximum(top - y, y - bottom), x.abs() - half_w)
    inside = ras.cover(hole + ras.pixel * 0.6 * (1 - 12 * open_).clamp(min=0))  # shut: no sliver of teeth
    dark = tint(rgb, (0.26, 0.06, 0.08)).expand_as(c["lips"])
    tongue = ellipse(x, y - base - low * 1.05, half_w * 0.62, 0.02 + 0.45 * low)
    fill = torch.lerp(dark, tint(rgb, (0.82, 0.36, 0.38)), ras.cover(tongue, 2.0))
    teeth = y - (top + (0.20 * (up + low)).clamp(max=0.058) + 0.012)
    fill = torch.lerp(fill, tint(rgb, (0.96, 0.95, 0.92)), ras.cover(teeth, 1.5))
    return torch.lerp(rgb, fill, inside)


def eyes(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Eyes with iris, pupil and highlight, lids and brows."""
    s, c, blink, shade = ras.shape, ras.color, ras.pose["blink"], ras.shape["shade"]
    ax = x.abs()
    qx = torch.where(x > 0, x - s["eye_x"], x + s["eye_x"])
    qy = y + 0.07
    half_w = 0.168 * s["eye_size"]
    t = qx / half_w
    t2 = t * t
    arch = (1 - t2) * (1 + 0.4 * t2)
    lid = (-0.116 + 0.164 * blink) * s["eye_size"] * arch
    low = 0.066 * s["eye_size"] * arch
    rgb = rgb * (1 - 0.10 * shade * bump(qx, qy + 0.03, 0.31, 0.18))
    white = torch.maximum(torch.maximum(lid - qy, qy - low), qx.abs() - half_w)
    ball = tint(rgb, (0.97, 0.97, 0.98)) * (1 - (0.10 + 0.12 * shade) * (1 - (qy - lid) * 14).clamp(0, 1))
    r = (qx.square() + (qy + 0.012).square() + 1e-8).sqrt()
    iris = c["iris"] * (1.0 + 4.0 * shade * qy)
    ball = torch.lerp(ball, iris, ras.cover(r - 0.092 * s["iris_size"]))
    ball = torch.lerp(ball, tint(rgb, (0.05, 0.04, 0.05)), ras.cover(r - 0.046 * s["iris_size"]))
    shine = ((qx - 0.030).square() + (qy + 0.046).square() + 1e-8).sqrt() - 0.027
    ball = torch.lerp(ball, tint(rgb, (1.0, 1.0, 1.0)), ras.cover(shine))
    rgb = torch.lerp(rgb, ball, ras.cover(white))
    dark = c["hair"] * 0.25 + 0.04
    lash = torch.maximum((qy - lid).abs() - 0.020 - 0.005 * s["ink"], t.abs() * half_w - half_w * 1.04)
    rgb = torch.lerp(rgb, dark, ras.cover(lash))
    # brows: strokes that thin outwards and make room for large eyes
    b = (ax - s["eye_x"]) / (half_w * 1.10)
    room = 0.215 + 0.10 * (s["eye_size"] - 1.08).clamp(min=0)
    by = qy + room + 0.055 * ras.pose["brow"] + s["brow_arch"] * (1 - b * b) - s["brow_tilt"] * b
    brow = torch.maximum(by.abs() - s["brow_width"] * (1.0 - 0.35 * b), b.abs() * half_w - half_w)
    tone = torch.lerp(c["hair"] * 0.75, c["skin"] * 0.45, 1 - s["hair_alpha"])
    return torch.lerp(rgb, tone, ras.cover(brow))


def glasses(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rims from round to square, bridge, temples and a faint lens."""
    s, ax, qy = ras.shape, x.abs(), y + 0.055
    qx = ax - s["eye_x"]
    corner_x, corner_y = (qx.abs() - 0.14).clamp(min=0), (qy.abs() - 0.105).clamp(min=0)
    square = (corner_x.square() + corner_y.square() + 1e-8).sqrt() - 0.06
    lens = torch.lerp(ellipse(qx, qy, 0.212, 0.178), square, s["square"])
    arm = torch.maximum(torch.maximum((qy + 0.055).abs() - 0.016, -lens), ax - s["face_w"])
    frame = torch.minimum(lens.abs() - s["rim"], arm)
    rgb = rgb + 0.08 * ras.cover(lens) * s["glasses"] * (1 - rgb)
    return torch.lerp(rgb, ras.color["frame"], ras.cover(frame) * s["glasses"])


def ears(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    s = ras.shape
    ear = ellipse(x.abs() - s["face_w"] * 0.99, y - 0.02, 0.085 * s["ear"], 0.135 * s["ear"])
    return torch.lerp(rgb, ras.color["skin"] * ((0.90 - 1.4 * (-ear - 0.015).clamp(0, 0.12)) * ras.rim(ear, 0.03)), ras.cover(ear))


def earrings(ras: Rasterizer, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    disc = ((x.abs() - 0.985 * ras.shape["face_w"]).square() + (y - 0.19).square() + 1e-8).sqrt() - 0.046
    tone = 0.35 * ras.color["accent"] + 0.65 * tint(rgb, (1.0, 0.92, 0.68))
    return torch.lerp(rgb, tone * ras.rim(disc, 0.012), ras.cover(disc) * ras.shape["earring"])
