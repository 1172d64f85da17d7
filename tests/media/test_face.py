"""A face is found in a photograph and framed as people are in training; the video is put back into it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everface import StreamConfig
from everface.avatar.avatar import Avatar
from everface.avatar.render import RenderJob, render
from everface.core.errors import BadInput, Unavailable
from everface.media import face
from everface.media.face import Region, can_find_faces, find_face
from everface.media.paste_back import MOST_PIXELS, PasteBack
from everface.media.video import read_frames

SHEET = Path(__file__).parents[2] / "docs" / "training" / "heads" / "people.jpg"
TOP, LEFT, SIDE = 100, 300, 240  # where the person stands in the photograph

needs_dlib = pytest.mark.skipif(not can_find_faces(), reason="needs the extra face")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A rendered person, 160 pixels wide on the sheet, in a room of 640x480."""
    room = np.linspace(60, 120, 640, dtype=np.float32)[None, :, None].repeat(480, 0).repeat(3, 2).astype(np.uint8)
    person = Image.open(SHEET).convert("RGB").crop((0, 0, 160, 160)).resize((SIDE, SIDE))
    room[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = np.array(person)
    path = tmp_path / "photo.png"
    Image.fromarray(room).save(path)
    return path


@needs_dlib
def test_the_square_is_the_persons(photo: Path) -> None:
    image = np.array(Image.open(photo))
    region = find_face(image)
    assert region is not None
    assert abs(region.side - SIDE) < 0.2 * SIDE and abs(region.top - TOP) < 0.15 * SIDE and abs(region.left - LEFT) < 0.15 * SIDE
    larger = find_face(np.array(Image.open(photo).resize((3200, 2400))))
    assert larger is not None and abs(larger.side / 5 - region.side) < 0.15 * SIDE
    assert find_face(image[:, :200]) is None
    close = find_face(image[TOP + 40 : TOP + 230, LEFT + 20 : LEFT + 220])  # the head fills the image: no more than there is
    assert close is not None and close.side <= 190 and min(close.top, close.left) >= 0


@needs_dlib
def test_what_is_shown(small_model: Path, photo: Path, wall: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Avatar(small_model) as avatar:
        shown = {crop: avatar.fit(photo, StreamConfig(crop=crop)) for crop in ("auto", "face", "center")}
        assert (shown["auto"] == shown["face"]).all() and not (shown["auto"] == shown["center"]).all()
        assert (avatar.fit(photo, StreamConfig(compat="official", crop="center")) == avatar.fit(photo, StreamConfig(compat="official"))).all()
        framed = np.array(Image.open(SHEET).convert("RGB").crop((0, 0, 160, 160)))
        Image.fromarray(framed).save(photo)
        assert (avatar.fit(photo, StreamConfig()) == avatar.fit(photo, StreamConfig(crop="center"))).all()  # framed already
        with caplog.at_level(logging.WARNING):
            avatar.fit(wall, StreamConfig(crop="face"))
    assert "no face was found in" in caplog.text


@pytest.fixture
def wall(tmp_path: Path) -> Path:
    path = tmp_path / "wall.png"
    Image.fromarray(np.full((90, 90, 3), 127, np.uint8)).save(path)
    return path


@needs_dlib
def test_the_whole_photograph_speaks(small_model: Path, photo: Path, voice: Path, tmp_path: Path, wall: Path) -> None:
    out = tmp_path / "talk.mp4"
    job = RenderJob(photo, voice, out, small_model, paste_back=True)
    report = render(job)
    region = find_face(np.array(Image.open(photo)))
    assert region is not None and abs(report.width - 640 * 64 / region.side) <= 2 and report.frames == 53
    frame = next(iter(read_frames(out)))
    still = np.array(Image.open(photo).resize((report.width, report.height), Image.Resampling.LANCZOS)).astype(int)
    corner = np.abs(frame[: report.height // 8].astype(int) - still[: report.height // 8])
    assert corner.mean() < 4  # the room, through the codec
    with pytest.raises(BadInput, match="nothing to put back"):
        render(replace(job, image=wall, out=tmp_path / "no.mp4"))


def test_edges_are_soft_and_the_photographs_own_are_not() -> None:
    photo = np.full((60, 80, 3), 50, np.uint8)
    paste = PasteBack(photo, Region(0, 20, 40), 40)
    [frame] = paste.apply(np.full((1, 40, 40, 3), 250, np.uint8))
    assert frame.shape == (60, 80, 3) and (frame[:, :20] == 50).all() and (frame[40:] == 50).all()
    assert (frame[:30, 30:50] == 250).all() and 50 < frame[10, 20, 0] < 250 and frame[0, 40, 0] == 250
    with pytest.raises(BadInput, match="because its face is small"):
        PasteBack(np.zeros((4000, 4000, 3), np.uint8), Region(0, 0, 100), 256)
    assert MOST_PIXELS < 4000 * 4000 * 2.56**2


def test_without_the_detector(monkeypatch: pytest.MonkeyPatch, small_model: Path, photo: Path) -> None:
    def missing() -> None:
        raise ImportError

    monkeypatch.setattr(face, "_detector", missing)
    with Avatar(small_model) as avatar:
        assert (avatar.fit(photo, StreamConfig()) == avatar.fit(photo, StreamConfig(crop="center"))).all()
        with pytest.raises(Unavailable, match=r"pip install 'everface\[face\]'"):
            avatar.fit(photo, StreamConfig(crop="face"))
    with pytest.raises(BadInput, match="crop"):
        StreamConfig(crop="nose")
