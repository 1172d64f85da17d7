"""Reads a reference image (JPEG, PNG or WebP) and turns it into the RGB tensor that the video encoder takes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from everface.core.errors import BadInput
from everface.media.crop import plan_crop

MAX_PIXELS = 64_000_000  # refused from the header, before anything is decoded
MAX_BYTES = 64 * 2**20
MIN_SIDE = 16  # pixels of an image's shorter side
MAX_ASPECT = 8  # longer over shorter side
NEUTRAL = (128, 128, 128)  # background of transparent images


def read_image(path: str | Path, background: tuple[int, int, int] = NEUTRAL) -> np.ndarray:
    """Read an image file as uint8 RGB [H, W, 3], turned upright by its EXIF orientation.

    Transparent pixels are blended with `background` (RGB). Of an animation the first frame is taken. Raises BadInput for a file
    that is missing, damaged, or not a JPEG, PNG or WebP; over 64 MB or 64 megapixels; under 16 pixels a side; or longer than 8:1.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path} is a folder: pass the path of one image file")
    if not path.is_file():
        raise BadInput(f"there is no image file at {path}: check the path")
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadInput(f"the image {path} has {size / 2**20:.0f} MB, more than {MAX_BYTES >> 20} MB: save a smaller one")
        if size == 0:
            raise BadInput(f"the image {path} is empty (0 bytes): save it again")
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # Pillow warns of big images and odd EXIF; the limits below decide
            with Image.open(file, formats=("JPEG", "PNG", "WEBP")) as image:
                _check_shape(path, *image.size)
                return _flatten(ImageOps.exif_transpose(image), background)
    except BadInput:
        raise
    except Image.DecompressionBombError:
        raise BadInput(_too_many_pixels(path)) from None
    except Image.UnidentifiedImageError:
        raise BadInput(f"{path} is not a JPEG, PNG or WebP image: convert it to one of these") from None
    except PermissionError as error:
        raise BadInput(f"the image {path} cannot be read ({error.strerror}): check its permissions") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and zlib.error alike
        reason = str(error) or type(error).__name__
        raise BadInput(f"the image {path} is damaged or cut short ({reason}): save it again") from None


def _too_many_pixels(path: Path) -> str:
    return f"the image {path} has more than {MAX_PIXELS // 10**6} megapixels: make it smaller first"


def _check_shape(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadInput(_too_many_pixels(path))
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"the image {path} has {width} x {height} pixels: use one with at least {MIN_SIDE} a side")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInput(f"the image {path} of {width} x {height} pixels is longer than {MAX_ASPECT}:1: crop it around the face")


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """Convert any Pillow mode to uint8 RGB [H, W, 3]. 16-bit gray is scaled, not clipped."""
    if image.mode.startswith("I"):
        gray_HW = (np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)
        return np.repeat(gray_HW[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def fit_image(image_HW3: np.ndarray, size: tuple[int, int], compat: str = "everface") -> torch.Tensor:
    """Bring an image, uint8 [h, w, 3], to `size` = (H, W): float32 [3, H, W] in -1..1, which is x / 127.5 - 1.

    Bilinear with antialiasing, then cropped around the center. compat "official" crops as the upstream code does, with black
    bars; the default covers the whole frame.
    """
    crop = plan_crop(image_HW3.shape[0], image_HW3.shape[1], size, compat)
    resized = Image.fromarray(image_HW3).resize((crop.resized_w, crop.resized_h), Image.Resampling.BILINEAR)
    H, W = size
    cut = resized.crop((crop.left, crop.top, crop.left + W, crop.top + H))  # Pillow fills the outside with black
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous().float() / 127.5 - 1.0
