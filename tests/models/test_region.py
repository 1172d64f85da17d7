"""A model that makes a region of the image only: around it stays what the image shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.small_model import SMALL, write_model

from everface import Avatar, StreamConfig
from everface.core.config import Deployment, ModelConfig
from everface.core.errors import BadWeights
from everface.core.regions import HALVES, cells
from everface.models.live_avatar.names import IMAGE, SURROUND
from everface.models.live_avatar.roles import DecodeRole
from everface.networks.motion import POSE
from everface.networks.video.vae import VAE
from everface.runtime.messages import Block, CloseSession, OpenSession
from everface.runtime.model import Window

MIDDLE = (0.25, 0.5, 0.75, 1.0)
CONFIG = replace(SMALL, dit=replace(SMALL.dit, cond_dim=POSE), motion=True, region=MIDDLE)  # 8x8 latents, of which rows 4..8 and columns 2..6


@pytest.fixture(scope="module")
def region_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("region"), CONFIG)


def test_a_region_is_widened_to_whole_tokens() -> None:
    assert cells((3 / 16, 4 / 16, 13 / 16, 15 / 16), (16, 16)) == (slice(4, 15), slice(3, 13))
    assert cells((3 / 16, 4 / 16, 13 / 16, 15 / 16), (12, 12)) == (slice(3, 12), slice(2, 10))
    assert cells((3 / 16, 4 / 16, 13 / 16, 15 / 16), (16, 16), 2) == (slice(4, 16), slice(2, 14))


def test_the_configuration_keeps_it_and_refuses_another() -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    for wrong in (CONFIG.to_dict() | {"region": [0.5, 0, 0.25, 1]}, CONFIG.to_dict() | {"motion": False}):
        with pytest.raises(BadWeights, match="not left, top, right and bottom as shares of the image, or heads are not still"):
            ModelConfig.from_dict(wrong)


@torch.no_grad()
def test_the_still_image_is_around_the_latents() -> None:
    torch.manual_seed(0)
    vae = VAE(SMALL.vae, encoder=False)
    role, whole = DecodeRole(vae, Deployment(), CONFIG), DecodeRole(vae, Deployment())
    surround, x = torch.randn(16, 2, 8, 8), torch.randn(16, 3, 4, 4)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    motion = torch.cat([surround, surround[:, 1:].expand(-1, 5, -1, -1)], 1)
    pasted = surround[:, 1:].expand(-1, 3, -1, -1).clone()
    pasted[..., 4:8, 2:6] = x
    role.open(OpenSession(1, {"motion": motion[..., 4:8, 2:6], SURROUND: surround, IMAGE: image}, {}))
    whole.open(OpenSession(1, {"motion": motion, IMAGE: image}, {}))
    assert torch.equal(role.run(Block(1, 0, 0, 0, 12, x, {})).x, whole.run(Block(1, 0, 0, 0, 12, pasted, {})).x)
    role.close(CloseSession(1))
    assert not role.around


def test_a_session_makes_the_region(region_model: Path, face: Path) -> None:
    other = torch.rand(3, 64, 64) * 2 - 1
    with Avatar(region_model) as avatar:
        session = avatar.model.session(face, StreamConfig(seed=3))
        state, _ = session.initial_state()
        assert state["reference"].shape == (16, 1, 4, 4) and state["motion"].shape == (16, 19, 4, 4) and state[SURROUND].shape == (16, 2, 8, 8)
        assert session.initial_x(0, 0).shape == session.initial_x(0, 1).shape == (16, 3, 4, 4)
        assert torch.equal(state[SURROUND][:, :1, 4:8, 2:6], state["reference"])
        changed = session.change(image=other)
        assert changed[SURROUND].shape == (16, 2, 8, 8) and torch.equal(session.cut()[SURROUND], changed[SURROUND])
        around = session.format.lookback_samples + session.format.lookahead_samples
        assert session.prepare(0, Window(torch.zeros(7680 + around), 0, 12, False, 0))["pose"].shape == (POSE, 3, 1, 1)
        with avatar.open(face, StreamConfig(seed=3)) as opened:
            frames = torch.cat([block.frames_THW3 for block in opened.stream([torch.zeros(16_000)])])
        assert frames.shape == (25, 64, 64, 3)
        two = avatar.model.session(face, StreamConfig(seed=3, speakers=HALVES)).initial_state()[0]
        assert two["reference"].shape == (16, 1, 8, 8) and SURROUND not in two


def test_around_the_region_an_image_may_change(region_model: Path, face: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(tmp_path / "white.png")
    shown = []
    with Avatar(region_model) as avatar:
        for image in (None, tmp_path / "white.png"):
            with avatar.open(face, StreamConfig(seed=3)) as session:
                session.push_audio(torch.zeros(7680 * 2))  # of the second block the look-ahead is not there yet
                if image:
                    session.change(image=image)
                session.push_audio(torch.zeros(7680 * 4))
                session.end_segment()
                shown.append(torch.cat([block.frames_THW3 for block in session.frames()]).float())
    plain, changed = shown
    assert torch.equal(plain[:12], changed[:12]) and (plain[-1, :16] - changed[-1, :16]).abs().mean() > 5
