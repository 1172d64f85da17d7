"""Embedded ICC profiles: the colors that come out are those that the profile means, in sRGB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.media import profiles

from everface.media.image import read_image

SKIN, SKIN_IN_SRGB = (224, 172, 140), (234, 169, 135)
DISPLAY_P3 = profiles.rgb(profiles.P3, *profiles.SRGB_CURVE)
NOISE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)


def off(found_HW3: np.ndarray, wanted: tuple[int, ...] | np.ndarray) -> int:
    return int(np.abs(found_HW3.astype(int) - np.asarray(wanted)).max())


def srgb_of(linear: np.ndarray) -> np.ndarray:
    """Linear light as sRGB values 0..255."""
    return np.clip(np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055), 0, 1) * 255


def srgb_of_lab(lab: tuple[float, float, float]) -> np.ndarray:
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.array(profiles.D50) * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return srgb_of(np.linalg.solve(np.array(profiles.SRGB).T, xyz))


@pytest.mark.parametrize(
    ("name", "options", "codec"),
    [
        ("a.png", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.tif", {}, 0),
        ("a.jpg", {"quality": 100, "subsampling": 0}, 1),
        ("a.avif", {"quality": 100, "subsampling": "4:4:4"}, 1),
    ],
)
def test_display_p3_skin_is_what_the_camera_saw(tmp_path: Path, name: str, options: dict[str, Any], codec: int) -> None:
    """`codec`: what the codec alone may be off."""
    Image.new("RGB", (32, 32), SKIN).save(tmp_path / name, icc_profile=DISPLAY_P3, **options)
    assert off(read_image(tmp_path / name), SKIN_IN_SRGB) <= 1 + codec


def test_a_palette_and_a_16_bit_image_have_profiles_too(tmp_path: Path) -> None:
    palette = Image.new("RGB", (32, 32), SKIN).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png", icc_profile=DISPLAY_P3)
    assert off(read_image(tmp_path / "p.png"), SKIN_IN_SRGB) <= 1
    deep = Image.fromarray(np.full((32, 32), 128 * 257, np.uint16))
    deep.save(tmp_path / "g.png", icc_profile=profiles.gray(1.0))  # linear light: 128 / 255 of it is 188 in sRGB
    assert off(read_image(tmp_path / "g.png"), (188,) * 3) <= 1
    deep.save(tmp_path / "g2.png", icc_profile=DISPLAY_P3)  # an RGB profile on a gray image: gray stays gray
    assert off(read_image(tmp_path / "g2.png"), (128,) * 3) <= 1


def test_transparency_is_kept_beside_a_profile(tmp_path: Path) -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:16] = (*SKIN, 255)
    rgba[16:24] = (*SKIN, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=DISPLAY_P3)
    image = read_image(tmp_path / "a.png", (0, 0, 0))
    assert off(image[:16], SKIN_IN_SRGB) <= 1 and (image[24:] == 0).all()
    assert off(image[16:24], np.array(SKIN_IN_SRGB) * 128 / 255) <= 2


def test_adobe_rgb_becomes_more_colorful(tmp_path: Path) -> None:
    """By the formulas: linear light by gamma 2.19921875, the matrix of the colorants, back into sRGB."""
    Image.new("RGB", (32, 32), SKIN).save(tmp_path / "a.png", icc_profile=profiles.rgb(profiles.ADOBE, 2.19921875))
    linear = np.array(profiles.ADOBE).T @ (np.array(SKIN) / 255) ** 2.19921875
    wanted = srgb_of(np.linalg.solve(np.array(profiles.SRGB).T, linear))
    assert off(read_image(tmp_path / "a.png"), wanted) <= 1


def test_srgb_itself_changes_no_bit(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png", icc_profile=profiles.rgb(profiles.SRGB, *profiles.SRGB_CURVE))
    assert (read_image(tmp_path / "a.png") == NOISE).all()


def test_cmyk_by_its_table(tmp_path: Path) -> None:
    lab = (60, 30, -20)
    table = profiles.cmyk({(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): lab})
    for name, ink, wanted in (("w.tif", (0, 0, 0, 0), (100, 0, 0)), ("c.tif", (255, 0, 0, 0), lab), ("k.tif", (0, 0, 0, 255), (0, 0, 0))):
        Image.new("CMYK", (32, 32), ink).save(tmp_path / name, icc_profile=table)
        assert off(read_image(tmp_path / name), srgb_of_lab(wanted)) <= 2
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "plain.tif")
    assert off(read_image(tmp_path / "plain.tif"), (0, 255, 255)) == 0  # as before: without a profile, the plain formula


def test_lab_needs_no_profile(tmp_path: Path) -> None:
    Image.new("LAB", (32, 32), (190, 128 + 17, 128 + 24)).save(tmp_path / "a.tif")
    assert off(read_image(tmp_path / "a.tif"), srgb_of_lab((190 / 2.55, 17, 24))) <= 2
    assert off(read_image(tmp_path / "a.tif"), SKIN) <= 2


BROKEN = {
    "not a profile": b"not a profile" * 20,
    "cut short": DISPLAY_P3[:200],
    "a device link": DISPLAY_P3[:12] + b"link" + DISPLAY_P3[16:],
    "of CMYK": profiles.cmyk({}),
    "of gray": profiles.gray(2.2),
    "a tag outside": DISPLAY_P3.replace(b"rXYZ", b"rXYZ\xff\xff\xff\xf0", 1)[: len(DISPLAY_P3)],
    "one byte": b"\0",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_profile_is_ignored_with_a_line(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "PNG", icc_profile=BROKEN[case])
    (tmp_path / "a.png").write_bytes(out.getvalue())
    image = read_image(tmp_path / "a.png")
    assert (image == NOISE).all()
    assert len(caplog.records) == 1 and "color profile" in caplog.text and str(tmp_path) in caplog.text
