"""Files that clients send: checked from their headers before anything is decoded."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from everface.core.errors import BadInput, EverfaceError
from everface.media.audio import probe_audio
from everface.media.image import FORMATS
from everface.serve.settings import Limits


def check_upload(image: Path, limits: Limits) -> None:
    """Refuse an image of too many pixels, by its header. What else may be wrong with it is found when it is read. Raises BadInput."""
    try:
        with Image.open(image, formats=FORMATS) as opened:
            pixels = opened.width * opened.height
    except Image.DecompressionBombError:
        pixels = limits.image_pixels + 1
    except Exception:  # damaged, or HEIC: read_image says it better
        return
    if pixels > limits.image_pixels:
        raise BadInput(f"the image has more than {limits.image_pixels / 1e6:g} megapixels: make it smaller first")


def check_audio(audio: Path, limits: Limits) -> None:
    """Decode its start, and refuse it if it says that it is too long. Raises BadInput."""
    info = probe_audio(audio)
    if info.duration_s is not None and info.duration_s > limits.audio_s:
        raise BadInput(too_long(limits))


def too_long(limits: Limits) -> str:
    return f"the audio is longer than {limits.audio_s:g} s: send less, or use the WebSocket"


def sentence(error: EverfaceError, *paths: Path) -> str:
    """Its text, without the server's own file names."""
    text = str(error)
    for path in paths:
        text = text.replace(str(path), path.stem)
    return text
