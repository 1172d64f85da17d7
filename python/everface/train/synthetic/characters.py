"""Drawn talking characters: who they are and how they move; `render` draws them, batched, differentiable, at any size.

Identity is a row of `IDENTITY` (colours and geometry); animation is a row of `ANIMATION`, one per frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from everface.train.synthetic.drawing import draw
from everface.train.synthetic.rasterizer import ANIMATION, COLOURS, IDENTITY, MIDDLE_Y, SHAPES

__all__ = [
    "ANIMATION", "COLOURS", "IDENTITY", "SHAPES", "eyes_box", "mouth_box", "neutral", "render", "sample_identity", "sample_motion",
]  # fmt: skip

NEUTRAL_WIDE = 0.5
FPS = 25
PAUSE = 5  # frames that a mouth is shut, at least, where a phrase ends
CHUNK = 12  # frames drawn at once: larger batches leave the cache and cost up to three times more per frame

# fmt: off
SKIN = ((.99, .86, .76), (.96, .78, .65), (.88, .67, .51), (.76, .55, .40), (.62, .43, .30), (.48, .32, .23), (.93, .72, .56),
        (.99, .90, .84), (.40, .26, .19), (.72, .49, .37), (.82, .62, .44))
HAIR = ((.10, .09, .11), (.22, .14, .10), (.38, .23, .13), (.55, .34, .17), (.86, .68, .36), (.70, .28, .14), (.62, .62, .66),
        (.30, .22, .45), (.16, .30, .42), (.80, .40, .52), (.90, .87, .80), (.14, .38, .36), (.46, .13, .17), (.30, .27, .26))
IRIS = ((.28, .18, .10), (.45, .30, .14), (.20, .42, .62), (.25, .50, .33), (.40, .44, .50))
LIPS = ((.80, .38, .38), (.72, .30, .34), (.62, .26, .26), (.86, .45, .44))
CLOTH = ((.20, .32, .55), (.65, .22, .26), (.18, .42, .36), (.90, .72, .30), (.24, .24, .28), (.88, .86, .82), (.48, .32, .58),
         (.25, .55, .65))
SKY = ((.62, .78, .90), (.95, .80, .68), (.74, .86, .74), (.82, .76, .92), (.96, .90, .74), (.46, .58, .72), (.88, .66, .68),
       (.36, .48, .50), (.93, .92, .89), (.30, .33, .46), (.94, .62, .44), (.55, .74, .62))
ACCENT = ((.84, .28, .24), (.95, .76, .30), (.20, .45, .66), (.26, .56, .44), (.55, .32, .60), (.22, .24, .32), (.92, .88, .80),
          (.93, .52, .46), (.45, .68, .80))
FRAME = ((.12, .11, .14), (.30, .17, .12), (.60, .18, .20), (.16, .28, .52), (.66, .52, .24), (.12, .36, .34))
# ink, shade, size of eyes, iris, width of brows: painted, flat, cartoon
STYLES = ((0.00, 1.00, 1.00, 1.00, 1.00), (0.92, 0.15, 1.00, 1.00, 1.05), (0.75, 0.55, 1.16, 1.12, 1.15))
# beard, its half width, moustache: none, stubble, full, goatee, moustache alone, beard without, light
BEARDS = ((0.0, 0.6, 0.0), (0.34, 0.8, 0.30), (0.92, 0.8, 0.92), (0.90, 0.21, 0.88), (0.0, 0.6, 0.95), (0.85, 0.8, 0.0))
# worn, line, height, fold, brim, bobble: none, beanie, beanie with a bobble, cap, wide brim, headband
HATS = (
    (0.0, -0.46, 2.00, 0.0, 0.00, 0.00),
    (1.0, -0.45, 2.00, 1.0, 0.00, 0.00),
    (1.0, -0.45, 2.00, 1.0, 0.00, 0.13),
    (1.0, -0.47, 2.00, 0.0, 0.50, 0.00),
    (1.0, -0.49, 2.00, 1.0, 0.86, 0.00),
    (1.0, -0.50, 0.14, 0.0, 0.00, 0.00),
)
# stripe, tie, scarf, lapel, hood, necklace: plain, stripe, jacket with tie, jacket, shirt with tie, scarf, hood, necklace
CLOTHES = (
    (0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0), (0, 1, 0, 1, 0, 0), (0, 0, 0, 1, 0, 0),
    (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0), (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1),
)
# horizon, window, disc, band, vignette
SCENES = ((0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (1, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1),
          (1, 0, 0, 0, 1))
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
HAIR_COLOUR_ODDS = (0.12, 0.12, 0.12, 0.10, 0.11, 0.09, 0.06, 0.03, 0.03, 0.03, 0.05, 0.03, 0.04, 0.07)
HAIR_ODDS = (0.06, 0.08, 0.16, 0.16, 0.12, 0.13, 0.12, 0.09, 0.08)
STYLE_ODDS = (0.50, 0.25, 0.25)
BEARD_ODDS, LONG_HAIR_BEARD_ODDS = (0.52, 0.14, 0.13, 0.07, 0.08, 0.06), (0.96, 0.01, 0.01, 0.01, 0.005, 0.005)
HAT_ODDS = (0.76, 0.05, 0.05, 0.05, 0.04, 0.05)
CLOTHES_ODDS = (0.30, 0.13, 0.08, 0.09, 0.06, 0.12, 0.13, 0.09)
SCENE_ODDS = (0.26, 0.16, 0.12, 0.06, 0.13, 0.13, 0.07, 0.07)
REACH = (0.055, 0.04, 0.065)  # how far dx, dy and rot may sway: the features stay in their boxes up to here


def sample_identity(n: int, generator: torch.Generator) -> Tensor:
    """Draw n characters. Returns id_NP float32, P = len(IDENTITY); the same generator state gives the same people."""

    def rand(lo: float, hi: float) -> Tensor:
        return lo + (hi - lo) * torch.rand(n, 1, generator=generator)

    def pick(palette: tuple, jitter: float, odds: tuple | None = None) -> Tensor:
        weight = torch.tensor(odds if odds else (1.0,) * len(palette))
        index = torch.multinomial(weight, n, replacement=True, generator=generator)
        noise = jitter * (torch.rand(n, len(palette[0]), generator=generator) - 0.5)
        return torch.tensor(palette)[index] + noise

    skin, hair, iris = pick(SKIN, 0.05), pick(HAIR, 0.08, HAIR_COLOUR_ODDS), pick(IRIS, 0.06)
    lips = 0.62 * pick(LIPS, 0.06) + 0.38 * skin * torch.tensor([1.0, 0.72, 0.72])
    cloth, sky = pick(CLOTH, 0.10), pick(SKY, 0.10)
    trim = torch.where(rand(0, 1) < 0.5, cloth * 0.72, cloth * 0.4 + 0.58)
    ground = sky * rand(0.62, 0.85) + torch.tensor([0.02, 0.0, 0.04])
    style = pick(HAIR_STYLES, 0.0, HAIR_ODDS)
    alpha, volume, length, line, part, swoop, curl = style.split(1, 1)
    side = torch.where(rand(0, 1) < 0.5, -1.0, 1.0)
    # what stands behind them, and the hand that draws them
    scene, scene_side = pick(SCENES, 0.0, SCENE_ODDS), torch.where(rand(0, 1) < 0.5, -1.0, 1.0)
    ground = torch.where(rand(0, 1) < 0.45, pick(SKY, 0.10), ground)
    hand = pick(STYLES, 0.0, STYLE_ODDS)
    ink, shade, eye_scale, iris_scale, brow_scale = (hand * (1 - 0.08 * torch.rand(n, 1, generator=generator))).split(1, 1)
    # what they wear
    short = length < 0.1
    beard = torch.where(short, pick(BEARDS, 0.0, BEARD_ODDS), pick(BEARDS, 0.0, LONG_HAIR_BEARD_ODDS))
    hat, clothes = pick(HATS, 0.0, HAT_ODDS), pick(CLOTHES, 0.0, CLOTHES_ODDS)
    volume = torch.where((hat[:, :1] > 0) & (hat[:, 2:3] > 1), volume * 0.5, volume * rand(0.85, 1.15))
    collar = torch.where(clothes[:, 1:2] + clothes[:, 3:4] > 0, 0.05, rand(0.06, 0.26))
    accent, frame = pick(ACCENT, 0.08), pick(FRAME, 0.04)
    eye_size, brow_width, brow_arch = rand(0.92, 1.08) * eye_scale, rand(0.022, 0.040) * brow_scale, rand(0.02, 0.06)
    mouth_w = rand(0.235, 0.275)
    shapes = [
        rand(0.585, 0.645), rand(0.655, 0.70), rand(0.10, 0.30), rand(0.27, 0.295), eye_size, brow_width,
        brow_arch, rand(-0.03, 0.03), mouth_w, rand(0.045, 0.072), rand(0.8, 1.25),
        (rand(0, 1) < 0.25).float(), collar,
        alpha, volume, length, line + rand(-0.03, 0.03), part * side, swoop * rand(0.85, 1.15), curl,
        rand(0.85, 1.15), rand(0.10, 0.34),
        ink, shade, iris_scale,
        *_rest(rand, eye_size, brow_width, brow_arch, mouth_w),
        beard, (rand(0, 1) < 0.25).float(), (rand(0, 1) < 0.45).float(), rand(0.013, 0.023),
        hat, clothes.float(),
        scene.float(), scene_side * rand(0.45, 0.75), rand(-0.15, 0.45),
    ]  # fmt: skip
    colours = torch.cat([skin, hair, iris, lips, cloth, trim, sky, ground, accent, frame], 1).clamp(0.03, 0.99)
    return torch.cat([colours, *shapes], 1)


def _rest(
    rand: Callable[[float, float], Tensor], eye_size: Tensor, brow_width: Tensor, brow_arch: Tensor, mouth_w: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where a head rests: dx, dy up to 0.05, tilt up to 4 degrees, scale 0.93-1.05, less where brows or the corners of the mouth
    would leave their boxes at the end of the sway (`REACH`)."""
    dx, dy, rot = REACH
    tilt = rand(-0.07, 0.07)
    brow = MIDDLE_Y + 0.345 + 0.10 * (eye_size - 1.08).clamp(min=0) + brow_width + brow_arch  # from the face's middle upwards
    corner = 1.3 * mouth_w + 0.04  # and sideways
    up = 0.5 + MIDDLE_Y - dy - 0.30 * (rot + tilt.abs())  # room for each, without an offset
    aside = 0.5 - dx - 0.40 * rot - 0.23 * tilt.abs()
    scale = rand(0.93, 1.05).minimum((up + 0.05) / brow).minimum(aside / corner)
    offset = rand(-0.05, 0.05).maximum(scale * brow - up)
    room = (aside - scale * corner).clamp(0, 0.05)
    return rand(-1, 1) * room, offset, tilt, scale


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

    Blinks come mostly where a phrase ends (`_blinks`); sway is a sum of 0.05-0.4 Hz sines of random phase (at most 3 px and
    3 degrees at 128 px); brows follow a slow sine and the low-passed opening.
    """
    T = len(open_T)
    time_s = torch.arange(T) / FPS

    def rand(n: int = 1) -> Tensor:
        return torch.rand(n, generator=generator)

    def sway(amplitude: float) -> Tensor:
        hertz, phase, weight = 0.05 + 0.35 * rand(3), 2 * math.pi * rand(3), 0.3 + rand(3)
        return amplitude * (torch.sin(2 * math.pi * hertz * time_s[:, None] + phase) * weight / weight.sum()).sum(1)

    blink_T = _blinks(open_T, generator)
    envelope, level = torch.zeros(T), float(open_T[0])
    for i, value in enumerate(open_T.tolist()):
        level += 0.12 * (value - level)
        envelope[i] = level
    brow_T = (0.25 + sway(0.25) + 0.5 * envelope).clamp(0, 1)
    return torch.stack([open_T.float(), wide_T.float(), blink_T, brow_T, sway(0.047), sway(0.032), sway(0.052)], 1)


def _blinks(open_T: Tensor, generator: torch.Generator) -> Tensor:
    """How far the lids are down, 0..1. People blink as they fall silent (Nakano and Kitazawa 2010, eyeblink entrainment at breakpoints of
    speech): here nine times in ten as the mouth shuts for `PAUSE` frames or more, and else after 4-8 s without. A blink lasts 6-8
    frames and the next one is a second away or more. Most can so be told from the sound: the end of a phrase is still among the nine
    frames that a latent's audio token hears (`model/audio.py`) while the lids are down."""
    shut = (open_T < 0.2).tolist()
    blink_T = torch.zeros(len(shut))

    def rand() -> float:
        return torch.rand(1, generator=generator).item()

    # As if the clip began at a random moment between two blinks: from `free` on one may begin, at `patience` one must.
    free = int(FPS * (1 - 5 * rand()))
    patience = int(FPS * 8 * rand())
    for t in range(len(shut)):
        ended = t > 0 and not shut[t - 1] and all(shut[t : t + PAUSE])
        if t >= free and (t >= patience or (ended and rand() < 0.9)):
            length = 6 + int(3 * rand())
            shape = (1.45 * torch.sin(math.pi * (torch.arange(length) + 1.0) / (length + 1))).clamp(max=1.0)
            blink_T[t : t + length] = shape[: len(shut) - t]
            free = t + length + FPS
            patience = free + int(FPS * (3 + 4 * rand()))
    return blink_T


def render(id_NP: Tensor, anim_NA: Tensor, size: int = 128) -> Tensor:
    """Draw N frames. id_NP may have one row for all frames. Returns rgb_N3HW float32 in -1..1, differentiable in both."""
    N = max(len(id_NP), len(anim_NA))
    id_NP, anim_NA = id_NP.expand(N, -1), anim_NA.expand(N, -1)
    if N <= CHUNK:
        return draw(id_NP, anim_NA, size)
    return torch.cat([draw(i, a, size) for i, a in zip(id_NP.split(CHUNK), anim_NA.split(CHUNK))])
