"""Drawn talking characters: a batched, differentiable, resolution-free renderer in pure torch.

Every shape is a signed distance field d (picture units: the picture spans -1..1, y down) painted with the coverage
clamp(1/2 - d / pixel, 0, 1), so edges are anti-aliased at any size and gradients reach identity and animation alike.
Identity is a row of `IDENTITY` (colours and geometry); animation is a row of `ANIMATION`, one per frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COLOURS = ("skin", "hair", "iris", "lips", "cloth", "collar_tone", "sky", "ground")
SHAPES = (
    "face_w", "face_h", "jaw", "eye_x", "eye_size", "brow_width", "brow_arch", "brow_tilt", "mouth_w", "lip_full", "nose",
    "glasses", "collar", "hair_alpha", "hair_volume", "hair_length", "hair_line", "hair_part", "hair_swoop", "hair_curl",
    "ear", "blush",
)  # fmt: skip
IDENTITY = tuple(f"{name}_{c}" for name in COLOURS for c in "rgb") + SHAPES
ANIMATION = ("open", "wide", "blink", "brow", "dx", "dy", "rot")  # 0..1 each; dx, dy picture units; rot radians
NEUTRAL_WIDE = 0.5
FPS = 25
CHUNK = 12  # frames drawn at once: larger batches leave the cache and cost up to three times more per frame

# fmt: off
SKIN = ((.99, .86, .76), (.96, .78, .65), (.88, .67, .51), (.76, .55, .40), (.62, .43, .30), (.48, .32, .23), (.93, .72, .56))
HAIR = ((.10, .09, .11), (.22, .14, .10), (.38, .23, .13), (.55, .34, .17), (.86, .68, .36), (.70, .28, .14), (.62, .62, .66),
        (.30, .22, .45), (.16, .30, .42), (.80, .40, .52))
IRIS = ((.28, .18, .10), (.45, .30, .14), (.20, .42, .62), (.25, .50, .33), (.40, .44, .50))
LIPS = ((.80, .38, .38), (.72, .30, .34), (.62, .26, .26), (.86, .45, .44))
CLOTH = ((.20, .32, .55), (.65, .22, .26), (.18, .42, .36), (.90, .72, .30), (.24, .24, .28), (.88, .86, .82), (.48, .32, .58),
         (.25, .55, .65))
SKY = ((.62, .78, .90), (.95, .80, .68), (.74, .86, .74), (.82, .76, .92), (.96, .90, .74), (.46, .58, .72), (.88, .66, .68),
       (.36, .48, .50))
# alpha, volume, length, line, part, swoop, curl: bald, buzz, crop, side part, full fringe, bob, long, long with fringe, curly
HAIR_STYLES = (
    (0.00, 0.00, -0.30, -0.56, 0.00, 0.10, 0.0),
    (0.55, 0.01, -0.30, -0.50, 0.00, 0.10, 0.0),
    (1.00, 0.05, -0.22, -0.50, 0.00, 0.20, 0.0),
    (1.00, 0.09, -0.15, -0.60, 0.24, 0.42, 0.0),
    (1.00, 0.09, 0.02, -0.37, 0.00, 0.00, 0.0),
    (1.00, 0.13, 0.48, -0.58, 0.14, 0.48, 0.0),
    (1.00, 0.13, 1.20, -0.62, -0.12, 0.55, 0.0),
    (1.00, 0.13, 1.20, -0.37, 0.00, 0.05, 0.0),
    (1.00, 0.15, 0.12, -0.48, 0.00, 0.15, 1.0),
)
# fmt: on
HAIR_ODDS = (0.06, 0.08, 0.16, 0.16, 0.12, 0.13, 0.12, 0.09, 0.08)


def sample_identity(n: int, generator: torch.Generator) -> Tensor:
    """Draw n characters. Returns id_NP float32, P = len(IDENTITY); the same generator state gives the same people."""

    def rand(lo: float, hi: float) -> Tensor:
        return lo + (hi - lo) * torch.rand(n, 1, generator=generator)

    def pick(palette: tuple, jitter: float, odds: tuple | None = None) -> Tensor:
        weight = torch.tensor(odds if odds else (1.0,) * len(palette))
        index = torch.multinomial(weight, n, replacement=True, generator=generator)
        noise = jitter * (torch.rand(n, len(palette[0]), generator=generator) - 0.5)
        return torch.tensor(palette)[index] + noise

    skin, hair, iris = pick(SKIN, 0.05), pick(HAIR, 0.08), pick(IRIS, 0.06)
    lips = 0.62 * pick(LIPS, 0.06) + 0.38 * skin * torch.tensor([1.0, 0.72, 0.72])
    cloth, sky = pick(CLOTH, 0.10), pick(SKY, 0.10)
    trim = torch.where(rand(0, 1) < 0.5, cloth * 0.72, cloth * 0.4 + 0.58)
    ground = sky * rand(0.62, 0.85) + torch.tensor([0.02, 0.0, 0.04])
    style = pick(HAIR_STYLES, 0.0, HAIR_ODDS)
    alpha, volume, length, line, part, swoop, curl = style.split(1, 1)
    side = torch.where(rand(0, 1) < 0.5, -1.0, 1.0)
    shapes = [
        rand(0.585, 0.645), rand(0.655, 0.70), rand(0.10, 0.30), rand(0.27, 0.295), rand(0.92, 1.08), rand(0.022, 0.040),
        rand(0.02, 0.06), rand(-0.03, 0.03), rand(0.235, 0.275), rand(0.045, 0.072), rand(0.8, 1.25),
        (rand(0, 1) < 0.25).float(), rand(0.06, 0.26),
        alpha, volume * rand(0.85, 1.15), length, line + rand(-0.03, 0.03), part * side, swoop * rand(0.85, 1.15), curl,
        rand(0.85, 1.15), rand(0.10, 0.34),
    ]  # fmt: skip
    colours = torch.cat([skin, hair, iris, lips, cloth, trim, sky, ground], 1).clamp(0.03, 0.99)
    return torch.cat([colours, *shapes], 1)


def neutral(n: int) -> Tensor:
    """The reference pose: mouth shut, eyes open, centred. Returns anim_NA."""
    anim_NA = torch.zeros(n, len(ANIMATION))
    anim_NA[:, 1] = NEUTRAL_WIDE
    return anim_NA


def mouth_box(size: int = 128) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) pixels that hold the mouth in every pose, sway included."""
    return size * 16 // 32, size * 28 // 32, size * 8 // 32, size * 24 // 32


def eyes_box(size: int = 128) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) pixels that hold eyes, brows and glasses in every pose, sway included."""
    return size * 8 // 32, size * 20 // 32, size * 4 // 32, size * 28 // 32


def sample_motion(open_T: Tensor, wide_T: Tensor, generator: torch.Generator) -> Tensor:
    """Animate a face that says open_T, wide_T at 25 frames per second. Returns anim_TA.

    Blinks come every 1.2-5 s and last 6-8 frames; sway is a sum of 0.05-0.4 Hz sines of random phase (at most 3 px and
    3 degrees at 128 px); brows follow a slow sine and the low-passed opening.
    """
    T = len(open_T)
    time_s = torch.arange(T) / FPS

    def rand(n: int = 1) -> Tensor:
        return torch.rand(n, generator=generator)

    def sway(amplitude: float) -> Tensor:
        hertz, phase, weight = 0.05 + 0.35 * rand(3), 2 * math.pi * rand(3), 0.3 + rand(3)
        return amplitude * (torch.sin(2 * math.pi * hertz * time_s[:, None] + phase) * weight / weight.sum()).sum(1)

    blink_T = torch.zeros(T)
    at = int(FPS * 5 * rand().item()) - 8  # as if the clip began at a random moment between two blinks
    while at < T:
        length = 6 + int(3 * rand().item())
        phase = torch.arange(length) + 1.0
        shape = (1.45 * torch.sin(math.pi * phase / (length + 1))).clamp(max=1.0)
        lo, hi = max(at, 0), min(at + length, T)
        if hi > lo:
            blink_T[lo:hi] = shape[lo - at : hi - at]
        at += length + int(FPS * (1.2 + 3.8 * rand().item()))
    envelope, level = torch.zeros(T), float(open_T[0])
    for i, value in enumerate(open_T.tolist()):
        level += 0.12 * (value - level)
        envelope[i] = level
    brow_T = (0.25 + sway(0.25) + 0.5 * envelope).clamp(0, 1)
    return torch.stack([open_T.float(), wide_T.float(), blink_T, brow_T, sway(0.047), sway(0.032), sway(0.052)], 1)


def render(id_NP: Tensor, anim_NA: Tensor, size: int = 128) -> Tensor:
    """Draw N frames. id_NP may have one row for all frames. Returns rgb_N3HW float32 in -1..1, differentiable in both."""
    N = max(len(id_NP), len(anim_NA))
    id_NP, anim_NA = id_NP.expand(N, -1), anim_NA.expand(N, -1)
    if N <= CHUNK:
        return _draw(id_NP, anim_NA, size)
    return torch.cat([_draw(i, a, size) for i, a in zip(id_NP.split(CHUNK), anim_NA.split(CHUNK))])


class _Face:
    """One batch in the making: parameters as N111 (shapes) and N311 (colours), head coordinates x, y as N1HW."""

    cap: Tensor  # distance to the outline of the hair, and of the skull below: left by _head for _hair
    skull: Tensor

    def __init__(self, id_NP: Tensor, anim_NA: Tensor, size: int) -> None:
        n_colour = len(COLOURS)
        self.colour = dict(zip(COLOURS, id_NP[:, : 3 * n_colour].reshape(-1, n_colour, 3, 1, 1).unbind(1)))
        self.shape = dict(zip(SHAPES, id_NP[:, 3 * n_colour :, None, None, None].unbind(1)))
        self.pose = dict(zip(ANIMATION, anim_NA[:, :, None, None, None].unbind(1)))
        self.pixel = 2.0 / size
        axis = (torch.arange(size, device=id_NP.device) + 0.5) * self.pixel - 1.0
        self.v, self.u = axis[None, None, :, None], axis[None, None, None, :]
        pose = self.pose
        cos, sin = torch.cos(pose["rot"]), torch.sin(pose["rot"])
        u, v = self.u - pose["dx"], self.v - pose["dy"] - 0.7  # the head turns about the neck's base
        self.x, self.y = cos * u + sin * v, cos * v - sin * u + 0.7

    def cover(self, d: Tensor, soft: float = 1.0) -> Tensor:
        return (0.5 - d * (1.0 / (self.pixel * soft))).clamp(0, 1)


def _ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """First-order distance to an ellipse: f / |grad f| with f = (x/rx)^2 + (y/ry)^2 - 1."""
    a, b = x / rx, y / ry
    f = a * a + b * b - 1
    return 0.5 * f * torch.rsqrt((a / rx).square() + (b / ry).square() + 1e-6)


def _draw(id_NP: Tensor, anim_NA: Tensor, size: int) -> Tensor:
    face = _Face(id_NP, anim_NA, size)
    rgb = _head(face)
    for box, part in ((mouth_box(size), _mouth), (eyes_box(size), _eyes)):
        rows, cols = slice(box[0], box[1]), slice(box[2], box[3])
        patch = part(face, rgb[..., rows, cols].clone(), face.x[..., rows, cols], face.y[..., rows, cols])
        rgb[..., rows, cols] = patch
    return _hair(face, rgb) * 2 - 1


def _head(f: _Face) -> Tensor:
    """Background, hair behind, neck, clothes, ears, face with its shading and nose. Returns rgb_N3HW in 0..1."""
    s, c, x, y = f.shape, f.colour, f.x, f.y
    ax = x.abs()
    halo = 0.07 * torch.exp(-1.6 * (f.u.square() + (f.v + 0.1).square()))
    rgb = torch.lerp(c["sky"], c["ground"], (f.v + 1) * 0.5) + halo
    # hair behind the head, down to its length
    curl = 0.018 * s["hair_curl"] * torch.sin(19 * x) * torch.sin(19 * y + 1)
    f.cap = _ellipse(x, y + 0.17, s["face_w"] + s["hair_volume"], 0.62 + s["hair_volume"]) + curl
    width = s["face_w"] + s["hair_volume"] * 0.8 - 0.06 * (y - 0.2).square()
    fall = torch.maximum(ax - width, torch.maximum(y - s["hair_length"], -0.2 - y))
    behind = torch.minimum(torch.maximum(f.cap, y - s["hair_length"] - 0.3), fall)
    rgb = torch.lerp(rgb, c["hair"] * 0.72, f.cover(behind) * s["hair_alpha"].floor())
    # neck and clothes hang from a body that follows the head by a third
    bx, by = f.u - f.pose["dx"] / 3, f.v - f.pose["dy"] / 3
    abx = bx.abs()
    chin = 0.60 + 0.07 * f.pose["open"]
    neck = torch.maximum(abx - 0.23 - 0.25 * (by - 0.62).clamp(min=0).square() * 4, 0.2 - by)
    shadow = (1 - (by - chin) * 4).clamp(0, 1)
    rgb = torch.lerp(rgb, c["skin"] * (0.90 - 0.20 * shadow), f.cover(neck))
    body = _ellipse(bx, by - 1.32, 0.98, 0.56)
    hole = _ellipse(bx, by - 0.72, 0.29, 0.06 + s["collar"])
    cloth = torch.maximum(body, -hole)
    rgb = torch.lerp(rgb, c["cloth"] * (1.05 - 0.22 * abx), f.cover(cloth))
    rgb = torch.lerp(rgb, c["collar_tone"], f.cover(torch.maximum((hole - 0.02).abs() - 0.032, body)))
    # ears
    ear = _ellipse(ax - s["face_w"] * 0.99, y - 0.02, 0.085 * s["ear"], 0.135 * s["ear"])
    rgb = torch.lerp(rgb, c["skin"] * (0.90 - 1.4 * (-ear - 0.015).clamp(0, 0.12)), f.cover(ear))
    # the face: an ellipse that narrows towards the jaw and follows the opening mouth
    fy = y + 0.06
    down = (fy * 1.5).clamp(0, 1)
    wide = s["face_w"] * (1 - s["jaw"] * down * down)
    f.skull = skull = _ellipse(x, fy, wide, s["face_h"] + 0.08 * f.pose["open"] * down)
    light = 1.03 - 0.06 * x - 0.05 * y - 0.16 * (1 + 5.0 * skull).clamp(0, 1).square()
    skin = c["skin"] * light
    blush = torch.exp(-((ax - 0.36).square() + (y - 0.20).square()) * 55) * s["blush"]
    skin = torch.lerp(skin, skin * _tint(skin, (1.06, 0.72, 0.70)), blush)
    ny = y - 0.17
    under = torch.exp(-(x / (0.085 * s["nose"])).square() - ((ny - 0.005) / 0.030).square())
    bridge = torch.exp(-((x + 0.01) / 0.045).square() - ((ny + 0.09) / 0.10).square())
    skin = skin * (1 - 0.36 * under + 0.08 * bridge)
    return torch.lerp(rgb, skin, f.cover(skull))


def _tint(like: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    """A constant colour as 1311 on the device of `like`."""
    return torch.tensor(rgb, device=like.device).view(1, 3, 1, 1)


def _mouth(f: _Face, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Lips, the dark of the mouth, teeth and tongue, inside the mouth box."""
    s, c, pose = f.shape, f.colour, f.pose
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
    tone = c["lips"] * (1.06 - 0.9 * (base - y).clamp(0, 0.14)) + 0.16 * gloss
    rgb = torch.lerp(rgb, tone, f.cover(lips))
    line = torch.maximum((y - base).abs() - 0.012, x.abs() - half_w)
    rgb = torch.lerp(rgb, c["lips"] * 0.42, f.cover(line))
    top, bottom = base - up * arch, base + low * arch
    hole = torch.maximum(torch.maximum(top - y, y - bottom), x.abs() - half_w)
    inside = f.cover(hole + f.pixel * 0.6 * (1 - 12 * open_).clamp(min=0))  # shut: no sliver of teeth
    dark = _tint(rgb, (0.26, 0.06, 0.08)).expand_as(c["lips"])
    tongue = _ellipse(x, y - base - low * 1.05, half_w * 0.62, 0.02 + 0.45 * low)
    fill = torch.lerp(dark, _tint(rgb, (0.82, 0.36, 0.38)), f.cover(tongue, 2.0))
    teeth = y - (top + (0.20 * (up + low)).clamp(max=0.058) + 0.012)
    fill = torch.lerp(fill, _tint(rgb, (0.96, 0.95, 0.92)), f.cover(teeth, 1.5))
    return torch.lerp(rgb, fill, inside)


def _eyes(f: _Face, rgb: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Eyes with iris, pupil and highlight, lids, brows and glasses, inside the eyes box. Both eyes share one formula."""
    s, c, blink = f.shape, f.colour, f.pose["blink"]
    ax = x.abs()
    qx = torch.where(x > 0, x - s["eye_x"], x + s["eye_x"])
    qy = y + 0.07
    half_w = 0.168 * s["eye_size"]
    t = qx / half_w
    t2 = t * t
    arch = (1 - t2) * (1 + 0.4 * t2)
    lid = (-0.116 + 0.164 * blink) * s["eye_size"] * arch
    low = 0.066 * s["eye_size"] * arch
    socket = torch.exp(-(qx / 0.22).square() - ((qy + 0.03) / 0.13).square())
    rgb = rgb * (1 - 0.10 * socket)
    white = torch.maximum(torch.maximum(lid - qy, qy - low), qx.abs() - half_w)
    ball = _tint(rgb, (0.97, 0.97, 0.98)) * (1 - 0.22 * (1 - (qy - lid) * 14).clamp(0, 1))
    r = (qx.square() + (qy + 0.012).square() + 1e-8).sqrt()
    iris = c["iris"] * (1.0 + 4.0 * qy)
    ball = torch.lerp(ball, iris, f.cover(r - 0.092))
    ball = torch.lerp(ball, _tint(rgb, (0.05, 0.04, 0.05)), f.cover(r - 0.046))
    shine = ((qx - 0.030).square() + (qy + 0.046).square() + 1e-8).sqrt() - 0.027
    ball = torch.lerp(ball, _tint(rgb, (1.0, 1.0, 1.0)), f.cover(shine))
    rgb = torch.lerp(rgb, ball, f.cover(white))
    dark = c["hair"] * 0.25 + 0.04
    lash = torch.maximum((qy - lid).abs() - 0.020, t.abs() * half_w - half_w * 1.04)
    rgb = torch.lerp(rgb, dark, f.cover(lash))
    # brows: strokes that thin outwards
    b = (ax - s["eye_x"]) / (half_w * 1.10)
    by = qy + 0.215 + 0.055 * f.pose["brow"] + s["brow_arch"] * (1 - b * b) - s["brow_tilt"] * b
    brow = torch.maximum(by.abs() - s["brow_width"] * (1.0 - 0.35 * b), b.abs() * half_w - half_w)
    tone = torch.lerp(c["hair"] * 0.75, c["skin"] * 0.45, 1 - s["hair_alpha"])
    rgb = torch.lerp(rgb, tone, f.cover(brow))
    # glasses: rims, bridge, temples and a faint lens
    lens = _ellipse(ax - s["eye_x"], qy - 0.015, 0.212, 0.178)
    arm = torch.maximum(torch.maximum((qy + 0.04).abs() - 0.016, -lens), ax - s["face_w"])
    frame = torch.minimum(lens.abs() - 0.017, arm)
    rgb = rgb + 0.08 * f.cover(lens) * s["glasses"] * (1 - rgb)
    return torch.lerp(rgb, _tint(rgb, (0.12, 0.11, 0.14)), f.cover(frame) * s["glasses"])


def _hair(f: _Face, rgb: Tensor) -> Tensor:
    """Hair in front: the cap above the hair line, and locks along the cheeks for the longer styles."""
    s, c, x, y = f.shape, f.colour, f.x, f.y
    side = ((x.abs() - s["face_w"] * 0.86) * 9).clamp(0, 1)
    line = s["hair_line"] + s["hair_swoop"] * (x - s["hair_part"]).square() + 0.03 * s["hair_curl"] * torch.sin(17 * x)
    edge = line + side * (s["hair_length"] + 0.32).clamp(min=0)
    front = torch.maximum(f.cap.minimum((x.abs() - s["face_w"] - s["hair_volume"] * 0.8).maximum(-0.2 - y)), y - edge)
    front = torch.maximum(front, f.skull - 4 * s["hair_alpha"].floor())  # a shaved head keeps the skull's outline
    strand = torch.sin(15 * (x - s["hair_part"]) + 4 * y) * 0.07 + 0.22 * torch.exp(-((y + 0.66 - 0.25 * x * x) / 0.09).square())
    return torch.lerp(rgb, c["hair"] * (1 + strand) + 0.12 * strand, f.cover(front, 1.3) * s["hair_alpha"]).clamp(0, 1)
