"""The mouth is found where it is, at any size, and the decoder widens it there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.small_model import SMALL, write_model

from everface.core.config import Deployment, LipsConfig
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, build_mouth_finder
from everface.models.live_avatar.names import HEAD, IMAGE
from everface.models.live_avatar.roles import DecodeRole
from everface.networks.motion import ARTICULATORS, with_mouth
from everface.networks.video.mouth_finder import LEAST, MOST, MouthFinder
from everface.networks.video.vae import VAE
from everface.runtime.messages import Block, OpenSession
from everface.train.heads.mouth_finder import draw, judge_mouth_finder, read_people, train_mouth_finder


def face(right: float, down: float, side: int = 128) -> torch.Tensor:
    """[3, H, W] uint8: two eyes and a red mouth below them."""
    y, x = torch.meshgrid(*2 * [(torch.arange(side) + 0.5) / side * 2 - 1], indexing="ij")
    image = torch.full((3, side, side), 150.0)
    for at_x, at_y, wide, high, color in ((right, down, 0.2, 0.07, (190, 30, 30)), (right - 0.2, down - 0.4, 0.08, 0.05, (20, 20, 20)), (right + 0.2, down - 0.4, 0.08, 0.05, (20, 20, 20))):
        image[:, ((x - at_x) / wide).square() + ((y - at_y) / high).square() < 1] = torch.tensor(color).float()[:, None]
    return image.byte()


@pytest.fixture(scope="module")
def people() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    places = torch.stack([0.3 * torch.rand(60, generator=generator) - 0.15, 0.25 + 0.2 * torch.rand(60, generator=generator)], 1)
    return [(face(*place.tolist())[None], place[None]) for place in places]


def test_it_learns_where_mouths_are(people: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    torch.manual_seed(0)
    before, _ = judge_mouth_finder(MouthFinder(), people[-12:])
    net = train_mouth_finder(people, 150)
    after, worst = judge_mouth_finder(net, people[-12:])
    assert after < 0.05 < before and worst < 0.12
    small, large = (net(face(0.1, 0.3, side)[None].float() / 127.5 - 1) for side in (96, 512))
    assert (small - large).norm() < 0.03
    far = net(torch.rand(8, 3, 40, 90) * 2 - 1)  # not a face, not square
    assert far.shape == (8, 2) and (far >= torch.tensor(LEAST)).all() and (far <= torch.tensor(MOST)).all()


def test_what_is_moved_is_still_told(people: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """The reddest place of an image that was shifted, turned, zoomed and mirrored is where the middle is said to be."""
    import random

    images, middles = draw(people, random.Random(1), torch.Generator().manual_seed(1))
    y, x = torch.meshgrid(*2 * [(torch.arange(128) + 0.5) / 64 - 1], indexing="ij")
    off, spread = [], []
    for rgb_3HW, middle_2 in zip(images, middles, strict=True):
        red_HW = (rgb_3HW[0] - rgb_3HW[1]) - (rgb_3HW[0] - rgb_3HW[1]).median()
        if red_HW.max() < 0.5:
            continue  # it became gray
        weight_HW = (red_HW > red_HW.max() / 2).float()
        off.append(((weight_HW * x).sum() / weight_HW.sum() - middle_2[0]).abs() + ((weight_HW * y).sum() / weight_HW.sum() - middle_2[1]).abs())
        spread.append(middle_2)
    assert len(off) > 30 and max(off) < 0.03 and torch.stack(spread)[:, 0].std() > 0.1


def test_drawn_characters_are_left_out(tmp_path: Path) -> None:
    for n in range(2):
        np.save(tmp_path / f"{n:05d}.npy", np.zeros((13, 32, 32, 3), np.uint8))
    np.savez(tmp_path / "00000.npz", lips=np.full((8, 4, 2), 0.5, np.float32))
    np.savez(tmp_path / "00001.npz", audio=np.zeros(3))
    ((rgb, middle),) = read_people(sorted(tmp_path.glob("*.npy")))
    assert rgb.shape == (4, 3, 128, 128) and rgb.dtype == torch.uint8 and torch.equal(middle, torch.zeros(4, 2))


def test_lips_follow_the_articulators() -> None:
    mouth_AT = torch.zeros(6, 3)
    mouth_AT[ARTICULATORS.index("spread"), 0], mouth_AT[ARTICULATORS.index("round"), 1], mouth_AT[ARTICULATORS.index("jaw"), 2] = 1, 1, 0.5
    head_KT = torch.randn(10, 3)
    moved_KT = with_mouth(head_KT, mouth_AT, LipsConfig(wider=0.12, narrower=0.13, taller=0.22))
    assert torch.equal(moved_KT[:8], head_KT[:8])
    assert torch.allclose(moved_KT[8:], torch.tensor([[0.12, -0.13, 0.0], [0.0, 0.0, 0.11]]))


@pytest.mark.parametrize("name", ["ada", "ben", "lou"])
def test_the_bundled_one_finds_the_bundled_mouths(name: str) -> None:
    net = build_mouth_finder(DEFAULT_WEIGHTS, Deployment())
    assert net is not None
    image = torch.from_numpy(np.array(Image.open(DEFAULT_WEIGHTS / f"{name}.png").convert("RGB"))).movedim(-1, 0)
    right, down = net(image[None].float() / 127.5 - 1)[0].tolist()
    assert abs(right) < 0.12 and 0.22 < down < 0.45


def test_the_decoder_widens_the_mouth_of_each_image(tmp_path: Path) -> None:
    """With a finder beside the weights lips move in the decoded frames, about the mouth of the image that is shown; without one they do not."""
    config = replace(SMALL, motion=True)
    vae = VAE(config.vae, encoder=False).eval()
    write_model(tmp_path, config)
    assert build_mouth_finder(tmp_path, Deployment()) is None
    still_CThw = torch.randn(config.vae.z_dim, 19, 8, 8, generator=torch.Generator().manual_seed(0))
    moved_KT = torch.zeros(10, 12)
    moved_KT[8] = 0.3

    def decoded(finder: MouthFinder | None, head_KT: torch.Tensor, right: float = 0.2) -> tuple[torch.Tensor, DecodeRole]:
        role = DecodeRole(vae, Deployment(), None, finder)
        side = 8 * config.vae.stride[1]
        image = face(right, 0.3, side)
        role.open(OpenSession(1, {"reference": still_CThw[:, :1], "motion": still_CThw, IMAGE: image}, {"seed": 0}))
        return role.run(Block(1, 0, 0, 0, 12, still_CThw[:, :3], {HEAD: head_KT}, True)).x, role

    class Told(MouthFinder):
        def forward(self, rgb_N3HW: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.2, 0.3]])

    still, _ = decoded(None, moved_KT)
    same, _ = decoded(Told(), torch.zeros(10, 12))
    wide, role = decoded(Told(), moved_KT)
    assert torch.equal(still, same) and not torch.equal(still, wide)
    changed_HW = (still != wide).any(3).any(0).float()
    side = len(changed_HW)
    assert changed_HW[int(0.65 * side), int(0.6 * side) - side // 8 : int(0.6 * side) + side // 8].mean() > 0.5 and changed_HW[: side // 8].mean() < 0.2
    assert role.mouths == {1: (pytest.approx(0.2), pytest.approx(0.3))}
