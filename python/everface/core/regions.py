"""Regions of an image: one for each of several speakers, which a caller may ask for, and the one that a model makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from everface.core.errors import BadInput

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, as fractions of the image's width and height. The right and bottom edge are not inside."""
HALVES: tuple[Box, ...] = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
MAX_SPEAKERS = 4


def check_regions(regions: tuple[Box, ...]) -> None:
    """Raises BadInput for regions that speakers cannot have. None at all is the single speaker of the whole image."""
    if not regions:
        return
    if not 2 <= len(regions) <= MAX_SPEAKERS:
        raise BadInput(f"{len(regions)} speakers cannot have regions: name those of 2 to {MAX_SPEAKERS}, or none for the one speaker of the image")
    for box in regions:
        if not is_box(box):
            text = ",".join(f"{edge:g}" for edge in box)
            raise BadInput(f"the region {text} of a speaker is no box: give left,top,right,bottom as fractions of the image, as in 0,0,0.5,1")
    for a, b in combinations(regions, 2):
        if max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3]):
            raise BadInput("the regions of two speakers overlap, so neither would speak there: make them smaller")


def is_box(box: Box) -> bool:
    """Whether it is a part of an image."""
    return len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


def cells(region: Box, size: Sequence[int], multiple: int = 1) -> tuple[slice, slice]:
    """Rows and columns of (h, w) cells that a region touches, widened to whole squares of `multiple` cells."""
    (left, top, right, bottom), (h, w) = region, size
    low, high = multiple * math.floor(top * h / multiple), multiple * math.ceil(bottom * h / multiple)
    first, last = multiple * math.floor(left * w / multiple), multiple * math.ceil(right * w / multiple)
    return slice(low, min(high, h)), slice(first, min(last, w))
