"""Formats: each one that is promised is read with its right colors, and bounded before it is decoded."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from tests.media.test_image_color import DISPLAY_P3, SKIN, SKIN_IN_SRGB

from everface.core.errors import BadInput
from everface.media.image import NAMES, read_image

RED, BLUE = Image.new("RGB", (48, 32), (255, 0, 0)), Image.new("RGB", (48, 32), (0, 0, 255))
RAMP = np.linspace(0, 255, 64, dtype=np.uint8)[None].repeat(64, 0)
needs_heic = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="needs everface[heic]")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(tmp_path: Path, data: bytes, name: str = "a") -> np.ndarray:
    (tmp_path / name).write_bytes(data)
    return read_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_promised_format_is_read_whatever_its_name(tmp_path: Path, kind: str) -> None:
    assert kind.replace("WEBP", "WebP") in NAMES
    halves = RED.copy()
    halves.paste(BLUE, (24, 0))
    image = read(tmp_path, encode(halves, kind, quality=95))
    assert image.shape == (32, 48, 3)
    assert np.abs(image[:, :20].astype(int) - (255, 0, 0)).max() <= 8 and np.abs(image[:, 28:].astype(int) - (0, 0, 255)).max() <= 8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_or_page_is_taken(tmp_path: Path, kind: str) -> None:
    """MPO: the JPEG of phones with two lenses."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = read(tmp_path, encode(RED, kind, save_all=True, append_images=[BLUE]))
    assert image.shape == (32, 48, 3) and np.abs(image.astype(int) - (255, 0, 0)).max() <= 8


def test_a_transparent_gif_shows_the_background(tmp_path: Path) -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:16] = (10, 20, 30, 255)
    image = read(tmp_path, encode(Image.fromarray(rgba), "GIF"))
    assert np.abs(image[:16].astype(int) - (10, 20, 30)).max() <= 4 and (image[16:] == 128).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I"])
def test_every_mode_of_tiff(tmp_path: Path, mode: str) -> None:
    if mode.startswith("I"):
        image = Image.fromarray((RAMP.astype(np.int64) * 257).astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]))
    else:
        image = Image.fromarray(RAMP).convert("RGB" if mode == "YCbCr" else mode).convert(mode)
    got = read(tmp_path, encode(image, "TIFF"))
    assert got.shape == (64, 64, 3)
    if mode != "1":
        assert np.abs(got.astype(int) - RAMP[..., None]).max() <= 8


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_is_turned_once(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 0, 0), (0, 0, 20, 10))  # red in the stored upper left
    got = read(tmp_path, encode(image, "TIFF", tiffinfo={274: orientation}))
    assert got.shape == ((20, 40, 3) if orientation in (1, 3) else (40, 20, 3))
    h, w = got.shape[0] // 2, got.shape[1] // 2
    corner = {1: (0, 0), 3: (1, 1), 6: (0, 1), 8: (1, 0)}[orientation]
    assert (got[corner[0] * h : corner[0] * h + h, corner[1] * w : corner[1] * w + w] == (255, 0, 0)).all()


def test_damaged_exif_costs_the_orientation_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = encode(RED, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=95)
    broken = encode(RED, "JPEG", exif=b"Exif\0\0rubbish rubbish", quality=95)
    for content in (data, broken):
        assert np.abs(read(tmp_path, content).astype(int) - (255, 0, 0)).max() <= 8


def test_32_bit_values_are_refused_as_their_range_is_unknown(tmp_path: Path) -> None:
    for array in (RAMP.astype(np.float32), RAMP.astype(np.int32) * 100_000):
        with pytest.raises(BadInput, match="save it with 8 or 16 bits"):
            read(tmp_path, encode(Image.fromarray(array), "TIFF"))


def big_tiff_header(side: int) -> bytes:
    """One strip that is said to have side x side pixels."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, side), (279, 4, 64)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + 64) + bytes(64) + struct.pack("<H", len(tags)) + entries + bytes(4)


def bombs() -> dict[str, bytes]:
    gif, bmp = bytearray(encode(RED, "GIF")), bytearray(encode(RED, "BMP"))
    frame = gif.copy()
    gif[6:10] = struct.pack("<HH", 9000, 9000)
    at = frame.index(b",\0\0\0\0" + struct.pack("<HH", 48, 32))  # a frame that is larger than the canvas
    frame[at + 5 : at + 9] = struct.pack("<HH", 9000, 9000)
    bmp[18:26] = struct.pack("<ii", 9000, 9000)
    return {"gif": bytes(gif), "gif frame": bytes(frame), "bmp": bytes(bmp), "tiff": big_tiff_header(9000), "tiff x 100": big_tiff_header(90_000)}


@pytest.mark.parametrize("kind", bombs())
def test_bombs_are_refused_from_the_header(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BadInput, match="64 megapixels"):
        read(tmp_path, bombs()[kind])


def test_an_avif_that_lies_of_its_size_is_refused(tmp_path: Path) -> None:
    data = bytearray(encode(RED, "AVIF"))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 9000, 9000)
    with pytest.raises(BadInput, match=r"64 megapixels|damaged"):
        read(tmp_path, bytes(data))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_a_file_cut_short_is_refused(tmp_path: Path, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode(noise, kind)
    for length in (len(data) // 2, 40):
        with pytest.raises(BadInput, match=r"cut short|is not a JPEG"):
            read(tmp_path, data[:length])


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "JPEG2000"])
def test_what_is_not_promised_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BadInput, match="is not a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC image"):
        read(tmp_path, encode(RED, kind))


def png_bomb(name: bytes, text: bytes) -> bytes:
    """A small image with a chunk that unpacks to 200 MB."""
    data = encode(RED, "PNG")
    body = name + text + zlib.compress(bytes(200 << 20), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize(("name", "text"), [(b"zTXt", b"Comment\0\0"), (b"iCCP", b"profile\0\0"), (b"iTXt", b"Comment\0\1\0\0\0")])
def test_a_png_that_unpacks_without_end_is_refused(tmp_path: Path, name: bytes, text: bytes) -> None:
    (tmp_path / "a").write_bytes(png_bomb(name, text))
    tracemalloc.start()
    with pytest.raises(BadInput, match="damaged"):
        read_image(tmp_path / "a")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_archives_and_paths_that_are_no_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.png", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("face.png", bytes(50 << 20))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    cases = {
        "bomb.png": "is not a JPEG", "pipe.png": "not a regular file", "loop.png": "cannot be read", "n" * 300: "too long",
        "a\0b.png": "cannot be read", "bomb.png/face.png": "no image file",
    }  # fmt: skip
    for name, words in cases.items():
        with pytest.raises(BadInput, match=words):
            read_image(tmp_path / name)


HEIC_HEAD = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(64)


def test_heic_without_its_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # the import fails as if it was not installed
    with pytest.raises(BadInput, match="pip install pillow-heif"):
        read(tmp_path, HEIC_HEAD, "a.jpg")
    assert read(tmp_path, encode(RED, "AVIF")).shape == (32, 48, 3)  # which needs no extra


@needs_heic
def test_heic_with_its_package(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 48), SKIN)
    with pytest.raises(BadInput, match=r"damaged|is not a JPEG"):
        read(tmp_path, HEIC_HEAD)
    assert np.abs(read(tmp_path, encode(image, "HEIF", quality=100)).astype(int) - SKIN).max() <= 2
    data = encode(image, "HEIF", quality=100, icc_profile=DISPLAY_P3)
    assert np.abs(read(tmp_path, data).astype(int) - SKIN_IN_SRGB).max() <= 2
    bomb = bytearray(data)
    at = bomb.index(b"ispe") + 8
    bomb[at : at + 8] = struct.pack(">II", 9000, 9000)
    with pytest.raises(BadInput, match=r"64 megapixels|damaged"):
        read(tmp_path, bytes(bomb))
