"""Rendered characters: repeatable, of any size, differentiable, moved by every scalar."""

from __future__ import annotations

import pytest
import torch

from everface.train.synthetic.characters import eyes_box, mouth_box, render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import neutral
from everface.train.synthetic.parameters import ANIMATION, COLORS, IDENTITY, SHAPES


def characters(n: int, seed: int = 0) -> torch.Tensor:
    return sample_identity(n, torch.Generator().manual_seed(seed))


def test_the_seed_determines_characters_and_images():
    assert torch.equal(characters(5), characters(5))
    assert not torch.equal(characters(5), characters(5, seed=1))
    assert characters(3).shape == (3, len(IDENTITY))
    a, b = (render(characters(3), neutral(3), 64) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float32 and a.shape == (3, 3, 64, 64)
    assert a.min() >= -1 and a.max() <= 1 and a.isfinite().all()


def test_one_row_of_identity_serves_many_frames_and_batches_do_not_mix():
    pose_NA = neutral(30)
    pose_NA[:, 0] = torch.linspace(0, 1, 30)
    many = render(characters(1), pose_NA, 64)
    torch.testing.assert_close(many[17:18], render(characters(1), pose_NA[17:18], 64), rtol=0, atol=1e-5)


def test_image_does_not_depend_on_resolution():
    small, large = (render(characters(6), neutral(6), s) for s in (64, 256))
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.02


@pytest.mark.parametrize("name", ANIMATION)
def test_every_scalar_moves_its_own_part(name: str):
    rest_NA, moved_NA = neutral(8), neutral(8)
    moved_NA[:, ANIMATION.index(name)] = {"dx": 0.04, "dy": 0.03, "rot": 0.05, "wide": 1.0}.get(name, 1.0)
    change = (render(characters(8), moved_NA) - render(characters(8), rest_NA)).abs().amax(1)
    assert change.flatten(1).mean(1).min() > 0.001, "every character must show it"
    box = {
        "open": mouth_box(),
        "wide": mouth_box(),
        "blink": eyes_box(),
        "brow": eyes_box(),
    }.get(name)
    if box and name != "open":  # an opening mouth also lowers the chin
        top, bottom, left, right = box
        outside = change.clone()
        outside[:, top:bottom, left:right] = 0
        assert outside.max() == 0


def test_blink_is_symmetric():
    id_NP, pose_NA = characters(8), neutral(8)
    for name in ("hair_part", "hair_alpha", "glasses"):
        id_NP[:, 3 * len(COLORS) + SHAPES.index(name)] = 0
    rest = render(id_NP, pose_NA)
    pose_NA[:, 2] = 1
    closed = render(id_NP, pose_NA)
    change = (closed - rest).abs().mean(1)
    torch.testing.assert_close(change[..., :64].sum((1, 2)), change[..., 64:].sum((1, 2)), rtol=0.1, atol=1)


def test_gradient_finds_the_pose_of_an_image():
    id_NP, truth_NA = characters(2, seed=4), neutral(2)
    truth_NA[:, 0], truth_NA[:, 4] = 0.6, 0.03
    goal = render(id_NP, truth_NA, 64)
    guess_NA = neutral(2).add(torch.tensor([0.3, 0, 0, 0, 0, 0, 0])).requires_grad_()
    optimizer = torch.optim.Adam([guess_NA], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (render(id_NP, guess_NA, 64) - goal).square().mean().backward()
        optimizer.step()
    found_NA = guess_NA.detach()
    assert (found_NA[:, 0] - 0.6).abs().max() < 0.08 and (found_NA[:, 4] - 0.03).abs().max() < 0.01
