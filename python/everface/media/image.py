"""Reads a reference image and turns it into the RGB tensor that the video encoder takes."""

from __future__ import annotations

import importlib
import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, features

from everface.core.config import check_size
from everface.core.errors import BadInput
from everface.core.log import log
from everface.media.color import to_srgb
from everface.media.crop import Crop, plan_crop

MAX_PIXELS = 64_000_000  # refused from the header, before anything is decoded
MAX_BYTES = 64 * 2**20
MIN_SIDE = 16  # pixels of an image's shorter side
MAX_ASPECT = 8  # longer over shorter side
ROUNDING = 1e-3  # of an image tensor's values, beyond -1..1
NEUTRAL = (128, 128, 128)  # background of transparent images
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow's names
NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}


def read_image(path: str | Path, background: tuple[int, int, int] = NEUTRAL) -> np.ndarray:
    """Read an image file as uint8 sRGB [H, W, 3], turned upright by its EXIF orientation, with its ICC profile applied.

    Transparent pixels are blended with `background` (RGB). Of an animation the first frame is taken, of a TIFF the first page. Raises
    BadInput for a file that is missing, damaged, or of no format in NAMES; over 64 MB or 64 megapixels; under 16 pixels a side; or
    longer than 8:1; and for HEIC without the package that reads it (everface[heic]).
    """
    path = Path(path)
    try:
        _check_file(path)
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # Pillow warns of big images and odd EXIF; the limits below decide
            formats = _choose_formats(path, file.read(256))
            file.seek(0)
            with Image.open(file, formats=formats) as image:
                _check_shape(path, *image.size)
                return _flatten(_turn_upright(image, path), background, path)
    except BadInput:
        raise
    except Image.DecompressionBombError:
        raise BadInput(_too_many_pixels(path)) from None
    except Image.UnidentifiedImageError:
        raise BadInput(f"{path} is not a {NAMES} image: convert it to one of these") from None
    except PermissionError as error:
        raise BadInput(f"the image {path} cannot be read ({error.strerror}): check its permissions") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and zlib.error alike
        reason = str(error) or type(error).__name__
        raise BadInput(f"the image {path} is damaged or cut short ({reason}): save it again") from None


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"there is no image file at {path}: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"the image {path} cannot be read ({reason}): check its name and permissions") from None
    if stat.S_ISDIR(found.st_mode):
        raise BadInput(f"{path} is a folder: pass the path of one image file")
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{path} is not a regular file: pass the path of one image file")
    if found.st_size > MAX_BYTES:
        raise BadInput(f"the image {path} has {found.st_size / 2**20:.0f} MB, more than {MAX_BYTES >> 20} MB: save a smaller one")
    if found.st_size == 0:
        raise BadInput(f"the image {path} is empty (0 bytes): save it again")


def _choose_formats(path: Path, head: bytes) -> tuple[str, ...]:
    """Pillow's formats for a file that begins with `head`. HEIC and AVIF name themselves in the brands of their `ftyp` box."""
    brands = set()
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, end, 4)}
    if brands & AVIF_BRANDS and not features.check("avif"):
        raise BadInput(f"{path} is an AVIF image, which this build of Pillow does not read: install the pillow wheel, or convert it")
    if brands & AVIF_BRANDS or not brands & HEIC_BRANDS:
        return FORMATS
    try:
        importlib.import_module("pillow_heif").register_heif_opener(thumbnails=False)
    except ImportError:
        raise BadInput(f"{path} is a HEIC image: run pip install pillow-heif (the extra everface[heic]), or convert it to JPEG") from None
    return ("HEIF",)


def _too_many_pixels(path: Path) -> str:
    return f"the image {path} has more than {MAX_PIXELS // 10**6} megapixels: make it smaller first"


def _check_shape(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadInput(_too_many_pixels(path))
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"the image {path} has {width} x {height} pixels: use one with at least {MIN_SIDE} a side")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInput(f"the image {path} of {width} x {height} pixels is longer than {MAX_ASPECT}:1: crop it around the face")


def _turn_upright(image: Image.Image, path: Path) -> Image.Image:
    image.load()  # first, because a TIFF turns itself when it is loaded
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError) as error:
        log.warning("the orientation of %s is not known, because its EXIF data is damaged (%s)", path, error)
        return image


def _flatten(image: Image.Image, background: tuple[int, int, int], path: Path) -> np.ndarray:
    """Convert any Pillow mode to uint8 sRGB [H, W, 3]. 16-bit gray is scaled, not clipped."""
    profile: bytes | None = image.info.get("icc_profile")
    if image.mode == "F" or (image.mode == "I" and np.asarray(image).max() > 65535):
        raise BadInput(f"the image {path} has 32 bits a pixel value: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    gray, alpha = image.mode in ("1", "L", "LA", "La"), None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in ("CMYK", "LAB"):
        image = image.convert("L" if gray else "RGB")
    rgb = to_srgb(image, profile, str(path))
    if alpha is not None:
        rgb.putalpha(alpha)
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, (*background, 255)), rgb).convert("RGB")
    return np.array(rgb)


def fit_image(image_HW3: np.ndarray, size: tuple[int, int], compat: str = "everface") -> torch.Tensor:
    """Bring an image, uint8 [h, w, 3], to `size` = (H, W): float32 [3, H, W] in -1..1, which is x / 127.5 - 1.

    Bilinear with antialiasing, then cropped around the center. compat "official" crops as the upstream code does, with black
    bars; the default covers the whole frame.
    """
    return crop_image(image_HW3, size, plan_crop(image_HW3.shape[0], image_HW3.shape[1], size, compat))


def crop_image(image_HW3: np.ndarray, size: tuple[int, int], crop: Crop) -> torch.Tensor:
    """The same by a given plan."""
    resized = Image.fromarray(image_HW3).resize((crop.resized_w, crop.resized_h), Image.Resampling.BILINEAR)
    H, W = size
    cut = resized.crop((crop.left, crop.top, crop.left + W, crop.top + H))  # Pillow fills the outside with black
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous().float() / 127.5 - 1.0


def check_image(image_3HW: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """An image that a caller made, without its gradient, if it is as `fit_image` returns it: float32 [3, H, W] in -1..1, of `size` =
    (H, W) or, where that is None, of any size that a video can have. Raises BadInput, which says how to make it so."""
    dtype, shape = str(image_3HW.dtype).removeprefix("torch."), list(image_3HW.shape)
    kind = f"an image tensor of {dtype} {shape} cannot be used"
    if image_3HW.layout != torch.strided or image_3HW.is_meta:
        raise BadInput(f"{kind}, because it has no value in memory for each pixel: pass float32 [3, H, W] in -1..1")
    if len(shape) != 3 or shape[0] != 3:
        fix = "image.permute(2, 0, 1)" if len(shape) == 3 and shape[-1] == 3 else "image[0]" if shape[:2] == [1, 3] else ""
        raise BadInput(f"{kind}, because three color channels come first: pass {fix or 'RGB as [3, H, W]'}")
    if dtype != "float32":
        raise BadInput(f"{kind}: pass {'image.float() / 127.5 - 1' if dtype == 'uint8' else 'image.float()'}, in -1..1")
    height, width = shape[1:]
    if size is None:
        check_size(height, width)
    elif (height, width) != tuple(size):
        raise BadInput(f"an image of {width}x{height} cannot be used in a video of {size[1]}x{size[0]}: resize it, or pass its file")
    low, high = (float(value) for value in image_3HW.detach().aminmax()) if image_3HW.numel() else (0.0, 0.0)
    if not (low > float("-inf") and high < float("inf")):
        raise BadInput(f"{kind}, because it has values that are not finite: repair it first")
    if low < -1 - ROUNDING or high > 1 + ROUNDING:
        fix = "image / 127.5 - 1" if low >= 0 and high > 2 else "image.clamp(-1, 1)"
        raise BadInput(f"{kind}, because its values are {low:g} to {high:g} where -1 to 1 belong: pass {fix}")
    if low >= 0:
        log.warning("no value of the image tensor is below 0, so it looks pale if it is in 0..1: then pass image * 2 - 1")
    return image_3HW.detach()
