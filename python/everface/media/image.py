"""A picture in: a JPEG, PNG or WebP file becomes the RGB tensor that the video encoder reads.

The size of the stream follows the aspect ratio of the picture, in multiples of 64 pixels: 8 of a latent cell times 8 cells of
the coarsest motion patch. `compat="official"` crops as upstream does, black bars included; the default covers the whole frame.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from everface.core.errors import BadInput

MAX_PIXELS = 64_000_000  # refused from the header, before anything is decoded
MAX_BYTES = 64 * 2**20
MIN_SIDE = 16  # pixels of a picture's shorter side
MAX_ASPECT = 8  # longer over shorter side
STRIDE = 64  # every side of a stream is a multiple of it
MAX_SIDE = 2048  # pixels of a stream's longer side
NEUTRAL = (128, 128, 128)  # shows through where the picture is transparent


@dataclass(frozen=True)
class Crop:
    """Resize to `resized_*`, paint on a black canvas grown by `pad_*` where that is too short, cut H x W from its centre.

    Units are pixels. `top` and `left` are the first row and column of the cut; with padding they are minus the leading bar.
    """

    resized_h: int
    resized_w: int
    pad_rows: int
    pad_cols: int
    top: int
    left: int


def read_image(path: str | Path, background: tuple[int, int, int] = NEUTRAL) -> np.ndarray:
    """The picture as uint8 [H, W, 3], upright as its EXIF says, transparency laid over `background`, first frame if it moves.

    BadInput: no such file, not a JPEG, PNG or WebP, cut short, over 64 MB or 64 megapixels, thinner than 16 pixels or 8:1.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no picture at {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadInput(f"the picture {path} has {size / 2**20:.0f} MB, more than {MAX_BYTES >> 20} MB: save it smaller")
        if size == 0:
            raise BadInput(f"the picture {path} is empty: its file has 0 bytes")
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # Pillow warns of big pictures and odd EXIF; the limits below decide
            with Image.open(file, formats=("JPEG", "PNG", "WEBP")) as image:
                _check_shape(path, *image.size)
                return _flatten(ImageOps.exif_transpose(image), background)
    except BadInput:
        raise
    except Image.DecompressionBombError:
        raise BadInput(_too_many_pixels(path)) from None
    except Image.UnidentifiedImageError:
        raise BadInput(f"{path} is not a JPEG, PNG or WebP picture: convert it to one of these") from None
    except PermissionError as error:
        raise BadInput(f"cannot read the picture {path}: {error.strerror}") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and zlib.error alike
        raise BadInput(
            f"the picture {path} is damaged or cut short ({str(error) or type(error).__name__}): save it again"
        ) from None


def _too_many_pixels(path: Path) -> str:
    return f"the picture {path} has more than {MAX_PIXELS // 10**6} megapixels: make it smaller first"


def _check_shape(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadInput(_too_many_pixels(path))
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"the picture {path} has {width} x {height} pixels: at least {MIN_SIDE} a side are needed")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInput(f"the picture {path} of {width} x {height} pixels is longer than {MAX_ASPECT}:1: cut it around the face")


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """Any Pillow mode to uint8 RGB. 16-bit grey is scaled, not clipped."""
    if image.mode.startswith("I"):
        grey_HW = (np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def parse_size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` (or `WIDTH*HEIGHT`) as (height, width), checked."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[x*×]\s*(\d{1,6})\s*", text)
    if not match:
        raise BadInput(f"the size {text!r} is not WIDTHxHEIGHT, for instance 704x384")
    return check_size(int(match[2]), int(match[1]))


def check_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) if a stream can have it: both sides multiples of 64 from 64 to 2048. BadInput names the nearest."""
    near_h, near_w = (min(max(round(side / STRIDE), 1), MAX_SIDE // STRIDE) * STRIDE for side in (height, width))
    if (near_h, near_w) != (height, width):
        raise BadInput(
            f"the size {width}x{height} cannot be used, sides are multiples of {STRIDE} from {STRIDE} to {MAX_SIDE}: "
            f"the nearest is {near_w}x{near_h}"
        )
    return height, width


def target_size(height: int, width: int, area: int) -> tuple[int, int]:
    """The stream's (H, W) for a picture of height x width pixels and at most `area` pixels: multiples of 64, never scaled up.

    With a = hw, b = 63(h+w), c = 63^2 - area, scales run from sqrt(area/a) (1 if the picture is small enough) down to
    (-b + sqrt(b^2 - 2ac)) / 2a (then 0.1) in 100 steps; sides are truncated, rounded up to 64; the first that fits is taken.
    The 2ac, where 4ac was meant, is upstream's.
    """
    if height < 1 or width < 1:
        raise BadInput(f"a picture of {width}x{height} pixels has no size")
    if area < STRIDE**2:
        raise BadInput(f"an area of {area} pixels is too small: at least {STRIDE}x{STRIDE} = {STRIDE**2} pixels are needed")
    a, b, c = height * width, (STRIDE - 1) * (height + width), (STRIDE - 1) ** 2 - area
    high, low = (math.sqrt(area / a), (-b + math.sqrt(b * b - 2 * a * c)) / (2 * a)) if a > area else (1.0, 0.1)
    for i in range(100):
        scale = high - (high - low) * i / 100
        h, w = (max(-(-int(side * scale) // STRIDE), 1) * STRIDE for side in (height, width))
        if h * w <= area:
            return h, w
    return _fallback_size(height, width, area)


def _fallback_size(height: int, width: int, area: int) -> tuple[int, int]:
    """Sides of the picture's aspect ratio floored to multiples of 64: for areas of few 64 x 64 squares, where no scale fits."""
    scale = min(math.sqrt(area / (height * width)), 1.0)
    h, w = (max(int(side * scale) // STRIDE, 1) * STRIDE for side in (height, width))
    longest = area // min(h, w) // STRIDE * STRIDE
    return min(h, longest), min(w, longest)


def plan_crop(height: int, width: int, size: tuple[int, int], compat: str = "everface") -> Crop:
    """How a picture of height x width pixels comes to `size` = (H, W).

    official: the shorter side becomes min(H, W), and what is then too short is padded with black (torchvision's integer rules).
    everface: the picture is scaled until it covers H x W; nothing is padded.
    """
    H, W = size
    if compat == "official":
        short = min(H, W)
        if height <= width:
            resized_h, resized_w = short, int(short * width / height)
        else:
            resized_h, resized_w = int(short * height / width), short
    elif H * width < W * height:  # the width is what is missing
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


def _cut(have: int, want: int) -> int:
    """First row of the centre cut: half of the surplus, rounded half to even; minus half of what is missing, rounded down."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def fit_image(image_HW3: np.ndarray, size: tuple[int, int], compat: str = "everface") -> torch.Tensor:
    """uint8 [h, w, 3] to float32 [3, H, W] in -1..1: bilinear with antialiasing, centre-cropped, x / 127.5 - 1."""
    crop = plan_crop(image_HW3.shape[0], image_HW3.shape[1], size, compat)
    resized = Image.fromarray(image_HW3).resize((crop.resized_w, crop.resized_h), Image.Resampling.BILINEAR)
    H, W = size
    cut = resized.crop((crop.left, crop.top, crop.left + W, crop.top + H))  # Pillow fills what lies outside with black
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous().float() / 127.5 - 1.0
