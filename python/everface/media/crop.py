"""Chooses the size of a stream from an image's aspect ratio, and the resize and crop that bring the image to it.

Sides are multiples of 64 pixels: 8 of a latent cell times 8 cells of the coarsest motion patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from everface.core.config import SIZE_STRIDE as STRIDE
from everface.core.errors import BadInput


@dataclass(frozen=True)
class Crop:
    """Resize to `resized_*`, pad with black by `pad_*` where that is too small, crop H x W from the center. Units are pixels.

    `top` and `left` are the first row and column of the crop; with padding they are minus the width of the leading bar.
    """

    resized_h: int
    resized_w: int
    pad_rows: int
    pad_cols: int
    top: int
    left: int


def target_size(height: int, width: int, area: int) -> tuple[int, int]:
    """The stream's (H, W) for an image of height x width pixels and at most `area` pixels: multiples of 64, never scaled up.

    With a = hw, b = 63(h+w), c = 63^2 - area, scales run from sqrt(area/a) (1 if the image is small enough) down to
    (-b + sqrt(b^2 - 2ac)) / 2a (then 0.1) in 100 steps; sides are truncated, then rounded up to 64; the first that fits is taken.
    The upstream code has this 2ac too, where 4ac was meant. Raises BadInput if the image is empty or `area` under 64 x 64.
    """
    if height < 1 or width < 1:
        raise BadInput(f"an image of {width}x{height} pixels is empty: choose another")
    if area < STRIDE**2:
        raise BadInput(f"an area of {area} pixels is too small: allow at least {STRIDE}x{STRIDE} = {STRIDE**2} pixels")
    a, b, c = height * width, (STRIDE - 1) * (height + width), (STRIDE - 1) ** 2 - area
    high, low = (math.sqrt(area / a), (-b + math.sqrt(b * b - 2 * a * c)) / (2 * a)) if a > area else (1.0, 0.1)
    for i in range(100):
        scale = high - (high - low) * i / 100
        h, w = (max(-(-int(side * scale) // STRIDE), 1) * STRIDE for side in (height, width))
        if h * w <= area:
            return h, w
    return _fallback_size(height, width, area)


def _fallback_size(height: int, width: int, area: int) -> tuple[int, int]:
    """Sides with the image's aspect ratio, floored to multiples of 64: for areas of few 64 x 64 squares, where no scale fits."""
    scale = min(math.sqrt(area / (height * width)), 1.0)
    h, w = (max(int(side * scale) // STRIDE, 1) * STRIDE for side in (height, width))
    longest = area // min(h, w) // STRIDE * STRIDE
    return min(h, longest), min(w, longest)


def plan_crop(height: int, width: int, size: tuple[int, int], compat: str = "everface") -> Crop:
    """The resize, padding and crop that bring an image of height x width pixels to `size` = (H, W).

    compat "official": the shorter side becomes min(H, W), and a side that is then too short is padded with black (torchvision's
    integer rules). "everface": the image is scaled until it covers H x W; nothing is padded.
    """
    H, W = size
    if compat == "official":
        short = min(H, W)
        if height <= width:
            resized_h, resized_w = short, int(short * width / height)
        else:
            resized_h, resized_w = int(short * height / width), short
    elif H * width < W * height:  # the width is too small
        resized_h, resized_w = max(H, round(height * W / width)), W
    else:
        resized_h, resized_w = H, max(W, round(width * H / height))
    return Crop(
        resized_h,
        resized_w,
        max(0, H - resized_h),
        max(0, W - resized_w),
        _cut(resized_h, H),
        _cut(resized_w, W),
    )


def plan_cover(height: int, width: int, size: tuple[int, int]) -> Crop:
    """LiveTalk's: scaled until it covers `size` = (H, W), sides truncated, cut around the center with the odd row at the end. Where the
    truncation leaves a side one pixel short, a black row or column follows it."""
    H, W = size
    scale = max(H / height, W / width)
    resized_h, resized_w = int(height * scale), int(width * scale)
    return Crop(resized_h, resized_w, max(0, H - resized_h), max(0, W - resized_w), -((H - resized_h) // 2), -((W - resized_w) // 2))


def _cut(have: int, want: int) -> int:
    """First row of the center crop: half of the surplus, rounded half to even; minus half of the missing rows, rounded down."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)
