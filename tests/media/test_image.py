"""Images: golden sizes and crops, every kind of file a user may pass, and the files that must be refused at once."""

import io
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from everface.core.errors import BadInput
from everface.media.crop import plan_crop, target_size
from everface.media.image import MAX_PIXELS, fit_image, read_image

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess.safetensors"


def golden_rows() -> list[dict[str, int]]:
    with safe_open(str(GOLDEN), "np") as file:
        columns = json.loads(file.metadata()["config"])["columns"]
        return [dict(zip(columns, map(int, row), strict=True)) for row in file.get_tensor("table")]


def test_sizes_and_crops_are_golden():
    rows = golden_rows()
    assert len(rows) == 90
    for row in rows:
        size = target_size(row["img_h"], row["img_w"], row["max_area"])
        assert size == (row["gen_h"], row["gen_w"]), row
        crop = plan_crop(row["img_h"], row["img_w"], size, "official")
        assert (crop.resized_h, crop.resized_w) == (row["resized_h"], row["resized_w"]), row
        assert (crop.pad_rows, crop.pad_cols) == (row["pad_rows"], row["pad_cols"]), row


def test_default_crop_covers_every_golden_case_without_bars():
    for row in golden_rows():
        h, w, H, W = (row[k] for k in ("img_h", "img_w", "gen_h", "gen_w"))
        crop = plan_crop(h, w, (H, W))
        assert (crop.pad_rows, crop.pad_cols) == (0, 0)
        assert crop.resized_h >= H and crop.resized_w >= W and (crop.resized_h == H or crop.resized_w == W)
        assert 0 <= crop.top <= crop.resized_h - H and 0 <= crop.left <= crop.resized_w - W
        assert abs(crop.resized_h / h - crop.resized_w / w) <= 1 / min(h, w)


@pytest.mark.parametrize("shape", [(16, 128), (128, 16), (16, 16), (999, 8000 - 8), (64, 65), (720, 1280)])
def test_any_area_gives_a_legal_size(shape: tuple[int, int]):
    for area in (4096, 5000, 8191, 8192, 12_289, 40_000, 270_336, 10_000_000):
        h, w = target_size(*shape, area)
        assert h >= 64 and w >= 64 and h % 64 == 0 and w % 64 == 0 and h * w <= area


def test_too_small_an_area_is_refused():
    with pytest.raises(BadInput, match="4096"):
        target_size(100, 100, 4095)


def test_bars_are_black_and_default_has_none():
    white = np.full((720, 1280, 3), 255, np.uint8)
    official_3HW = fit_image(white, (384, 704), "official")
    assert official_3HW.shape == (3, 384, 704) and official_3HW.dtype == torch.float32
    assert (official_3HW[:, :, :11] == -1).all() and (official_3HW[:, :, -11:] == -1).all()
    assert (official_3HW[:, :, 11:-11] == 1).all()
    assert (fit_image(white, (384, 704)) == 1).all()


def test_values_are_exact_and_centered_when_nothing_is_resized():
    image = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    want = torch.from_numpy(image[:, 32:160].copy()).permute(2, 0, 1).float() / 127.5 - 1
    for compat in ("official", "everface"):
        assert torch.equal(fit_image(image, (128, 128), compat), want)


def test_resize_antialiases():
    board = np.zeros((512, 512, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255  # without antialiasing this aliases to flat black or white
    small = fit_image(board, (64, 64))
    assert small[:, 1:-1, 1:-1].abs().max() < 0.02


def oriented(orientation: int) -> bytes:
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 0, 0), (0, 0, 20, 10))  # red in the stored upper left
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize(
    ("orientation", "shape", "red"),
    [(1, (20, 40), (0, 0)), (3, (20, 40), (1, 1)), (6, (40, 20), (0, 1)), (8, (40, 20), (1, 0))],
)
def test_exif_orientation(tmp_path: Path, orientation: int, shape: tuple[int, int], red: tuple[int, int]):
    path = tmp_path / "a.jpg"
    path.write_bytes(oriented(orientation))
    image = read_image(path)
    assert image.shape[:2] == shape
    h, w = shape[0] // 2, shape[1] // 2
    means = {(r, c): image[r * h : (r + 1) * h, c * w : (c + 1) * w, 0].mean() for r in (0, 1) for c in (0, 1)}
    assert max(means, key=lambda k: means[k]) == red


def test_transparency_shows_the_background(tmp_path: Path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:16] = (10, 20, 30, 255)
    for name in ("a.png", "a.webp"):
        Image.fromarray(rgba).save(tmp_path / name, lossless=True)
        image = read_image(tmp_path / name)
        assert (image[:16] == (10, 20, 30)).all() and (image[16:] == 128).all()
    assert (read_image(tmp_path / "a.png", (255, 0, 0))[16:] == (255, 0, 0)).all()
    palette = Image.fromarray(rgba[..., :3]).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 31)))
    assert (read_image(tmp_path / "p.png")[16:] == 128).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str):
    gray = np.linspace(0, 255, 64, dtype=np.uint8)[None].repeat(64, 0)
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    got = read_image(path)
    assert got.shape == (64, 64, 3) and got.dtype == np.uint8
    if mode != "1":
        assert np.abs(got.astype(int) - gray[..., None]).max() <= 8


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_first_frame_of_an_animation(tmp_path: Path, name: str):
    red, blue = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    red.save(tmp_path / name, save_all=True, append_images=[blue], duration=100, lossless=True)
    assert (read_image(tmp_path / name) == (255, 0, 0)).all()


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = zlib.compress(bytes(1 + 3 * width))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", row)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [30_000, 12_000, 8_001])
def test_bombs_are_refused_from_the_header(tmp_path: Path, side: int, recwarn: pytest.WarningsRecorder):
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    start = time.monotonic()
    with pytest.raises(BadInput, match="64 megapixels"):
        read_image(path)
    assert time.monotonic() - start < 1 and not recwarn.list


def test_webp_bomb_is_refused_from_the_header(tmp_path: Path):
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "WEBP", lossless=True)
    data = bytearray(out.getvalue())
    at = data.index(b"VP8L") + 9  # after the chunk's name, length and signature: 14 bits of width - 1, 14 of height - 1
    data[at : at + 4] = ((16_382 << 14) | 16_382).to_bytes(4, "little")
    (tmp_path / "bomb.webp").write_bytes(data)
    with pytest.raises(BadInput, match="64 megapixels"):
        read_image(tmp_path / "bomb.webp")


def test_unusable_files_are_one_sentence(tmp_path: Path):
    whole = {}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("a.jpg", "a.png", "a.webp"):
        noise.save(tmp_path / name)
        whole[name] = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(whole[name][: len(whole[name]) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    noise.save(tmp_path / "a.ppm")
    (tmp_path / "svg.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    Image.new("RGB", (300, 15)).save(tmp_path / "thin.png")
    Image.new("RGB", (900, 100)).save(tmp_path / "long.png")
    with open(tmp_path / "huge.png", "wb") as file:
        file.write(whole["a.png"])
        file.truncate(65 * 2**20)
    cases = {
        "missing.png": "no image file", "": "folder", "empty.png": "empty", "text.png": "not a JPEG", "a.ppm": "not a JPEG",
        "svg.png": "not a JPEG", "cut-a.jpg": "cut short", "cut-a.png": "cut short", "cut-a.webp": "cut short",
        "thin.png": "at least 16", "long.png": "8:1", "huge.png": "65 MB",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(BadInput, match=message) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
