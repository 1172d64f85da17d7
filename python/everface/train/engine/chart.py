"""Draws curves as an image with Pillow: one panel per name, one above the other, over the same axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 860, 150  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 22, 24  # around its axes
INK, GRID, CURVE, BAND = (40, 40, 46), (222, 222, 226), (30, 90, 170), (226, 238, 226)
FEW = 40  # up to so many points are marked one by one


def draw_panels(path: Path, panels: Mapping[str, Points], x_name: str, bands: Mapping[str, tuple[float, float]] | None = None) -> Path:
    """Write `path` (PNG) and return it. `bands`: the tolerance of a panel, shaded. Points that are not finite are left out."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in panels.items()}
    image = Image.new("RGB", (WIDTH, HEIGHT * len(finite) + 16), "white")
    pen = ImageDraw.Draw(image)
    all_x = [x for points in finite.values() for x, _ in points]
    span_x = _span(all_x)
    for i, (name, points) in enumerate(finite.items()):
        _panel(pen, HEIGHT * i, name, points, span_x, (bands or {}).get(name))
    for x in (span_x[0], sum(span_x) / 2, span_x[1]):
        pen.text((_at(x, span_x, LEFT, WIDTH - RIGHT), HEIGHT * len(finite) - BOTTOM + 8), f"{x:.6g}", INK, anchor="ma")
    pen.text((WIDTH // 2, HEIGHT * len(finite) + 12), x_name, INK, anchor="mb")
    image.save(path)
    return path


def _panel(pen: ImageDraw.ImageDraw, top: int, name: str, points: Points, span_x: tuple[float, float], band: tuple[float, float] | None) -> None:
    floor, ceiling = top + HEIGHT - BOTTOM, top + TOP
    span_y = _span([y for _, y in points] + list(band or ()))
    if band:
        pen.rectangle((LEFT, _at(band[1], span_y, floor, ceiling), WIDTH - RIGHT, _at(band[0], span_y, floor, ceiling)), BAND)
    for y in (span_y[0], sum(span_y) / 2, span_y[1]):
        line = _at(y, span_y, floor, ceiling)
        pen.line((LEFT, line, WIDTH - RIGHT, line), GRID)
        pen.text((LEFT - 8, line), f"{y:.4g}", INK, anchor="rm")
    pen.text((LEFT, ceiling - 4), f"{name}   last {points[-1][1]:.4g}" if points else f"{name}   no values", INK, anchor="lb")
    spots = [(_at(x, span_x, LEFT, WIDTH - RIGHT), _at(y, span_y, floor, ceiling)) for x, y in points]
    if len(spots) > 1:
        pen.line(spots, CURVE, 2)
    for x, y in spots if len(spots) < FEW else ():
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), CURVE)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with some room, never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
    return low - room, high + room


def _at(value: float, span: tuple[float, float], first: float, last: float) -> float:
    return first + (last - first) * (value - span[0]) / (span[1] - span[0])
