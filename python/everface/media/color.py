"""Brings an image's colors to sRGB by the ICC profile in its file."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageCms

from everface.core.log import log

SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}  # a profile's color space -> the mode that it describes
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
SAME = 1  # a profile that moves no color of the grid by more, of 255, is sRGB under another name


def to_srgb(image: Image.Image, profile: bytes | None, what: str) -> Image.Image:
    """An image of mode L, RGB, CMYK or LAB as RGB in sRGB. `what` names it in the log.

    Without a profile, L and RGB count as sRGB. A profile that is broken or describes another mode is ignored, with a line in the log.
    """
    if profile:
        try:
            return _apply(image, profile, what)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
            log.warning("the color profile of %s is ignored: %s", what, error)
    return _convert(image, _built_in("LAB")) if image.mode == "LAB" else image.convert("RGB")


def _apply(image: Image.Image, profile: bytes, what: str) -> Image.Image:
    opened = ImageCms.core.profile_frombytes(profile)
    source, space = ImageCms.ImageCmsProfile(opened), opened.xcolor_space.strip()
    mode = SPACES.get(space)
    if (image.mode, mode) == ("L", "RGB"):
        image = image.convert("RGB")
    if image.mode != mode:
        raise ValueError(f"it describes {space} colors, not the {image.mode} of the image")
    if mode == "RGB":
        moved = np.abs(np.asarray(_convert(_color_grid(), source)).astype(int) - np.asarray(_color_grid()))
        if moved.max() <= SAME:
            return image
    log.info("the colors of %s are converted to sRGB from %r", what, ImageCms.getProfileDescription(source).strip()[:80])
    return _convert(image, source)


def _convert(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, _built_in("sRGB"), INTENT, "RGB", flags=FLAGS)
    assert converted is not None  # as only a conversion in place returns
    return converted


def _built_in(space: Literal["sRGB", "LAB"]) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space))


def _color_grid() -> Image.Image:
    """17 x 17 x 17 colors."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    step_count = len(steps)
    grid_HW3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(step_count**2, step_count, 3)
    return Image.fromarray(grid_HW3)
