"""The bundled model is opened on images that it knows and on one that it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everface.avatar.avatar import Avatar
from everface.core.config import ModelConfig, StreamConfig
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.models.live_avatar.model import LiveAvatar
from everface.networks.familiarity import FILE
from everface.train.bundle import CHARACTERS, draw_portrait
from everface.train.data.familiarity import fit_familiarity, write_familiarity
from everface.train.data.vae_files import read_vae
from everface.train.synthetic.characters import render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import neutral

SIDE = (ModelConfig.read(DEFAULT_WEIGHTS / "config.json").size or (0, 0))[0]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is not among the 32."""
    path = tmp_path_factory.mktemp("images") / "known.png"
    draw_portrait(CHARACTERS["ada"]).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled ones, and what knows 32 drawn characters."""
    folder = tmp_path_factory.mktemp("weights")
    for path in DEFAULT_WEIGHTS.iterdir():
        if path.name != FILE:
            (folder / path.name).symlink_to(path)
    vae = read_vae(DEFAULT_WEIGHTS)
    with torch.inference_mode():
        faces = render(sample_identity(32, torch.Generator().manual_seed(1)), neutral(32), SIDE)
        latents = torch.cat([vae.encode(part[:, :, None]) for part in faces.split(16)])[:, :, 0]
    write_familiarity(folder, fit_familiarity(latents))
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes."""
    path = tmp_path_factory.mktemp("images") / "stripes.png"
    Image.fromarray(np.tile(np.arange(128, dtype=np.uint8) // 16 * 36, (128, 1))[..., None].repeat(3, 2)).save(path)
    return path


def test_an_unlike_image_is_told_of_once_and_shown(weights: Path, known: Path, stranger: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Avatar(weights) as avatar:
        with avatar.open(known) as session:
            assert session.remark == "" and not caplog.messages
            session.change(image=stranger)
            assert session.remark.startswith("the image is unlike those that these weights know")
        with avatar.open(stranger) as session:
            assert caplog.messages == [f"{stranger}: {session.remark}"]
        with avatar.open(avatar.fit(stranger, StreamConfig())) as session:
            assert caplog.messages[1:] == [session.remark]
        with avatar.open(avatar.fit(stranger, StreamConfig()), name="a photograph") as session:
            assert caplog.messages[2:] == [f"a photograph: {session.remark}"]


def test_an_image_of_another_size_is_judged_at_the_size_that_is_known(weights: Path, known: Path, stranger: Path) -> None:
    with Avatar(weights) as avatar:
        assert isinstance(avatar.model, LiveAvatar)
        conditioner = avatar.model.conditioner
        assert conditioner.familiarity is not None
        for path, unlike in ((known, False), (stranger, True)):
            double_3HW = torch.nn.functional.interpolate(avatar.fit(path, StreamConfig())[None], scale_factor=2, mode="bilinear")[0]
            reference = conditioner.image_state(double_3HW, whole=True)["reference"]
            assert reference.shape[-2:] != conditioner.familiarity.size and bool(conditioner.remark(double_3HW, reference)) == unlike


def test_without_the_file_no_image_is_judged(weights: Path, stranger: Path, tmp_path: Path) -> None:
    for path in weights.iterdir():
        if path.name != FILE:
            (tmp_path / path.name).symlink_to(path)
    with Avatar(tmp_path) as avatar, avatar.open(stranger) as session:
        assert session.remark == ""
