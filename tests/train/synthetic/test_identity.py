"""Variety of the drawn characters: all differ, every part appears, nothing leaves its box, gradients reach everything."""

from __future__ import annotations

import itertools

import pytest
import torch

from everface.train.synthetic.characters import eyes_box, mouth_box, render
from everface.train.synthetic.identity import MAX_SWAY, sample_identity
from everface.train.synthetic.motion import neutral
from everface.train.synthetic.parameters import ANIMATION, IDENTITY
from everface.train.synthetic.rasterizer import Rasterizer

PARTS = ("ink", "beard", "moustache", "earring", "glasses", "square", "hat", "hat_fold", "hat_brim", "hat_bobble", "stripe", "tie",
         "scarf", "lapel", "hood", "necklace", "horizon", "window", "disc", "band", "vignette", "hair_curl")  # fmt: skip


def characters(n: int, seed: int = 0) -> torch.Tensor:
    return sample_identity(n, torch.Generator().manual_seed(seed))


def column(name: str) -> int:
    return IDENTITY.index(name)


def extremes(anim: dict[str, float]) -> torch.Tensor:
    """The eight corners of the sway, each with the given scalars."""
    pose_NA = neutral(8)
    pose_NA[:, 4:] = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))) * torch.tensor(MAX_SWAY)
    for name, value in anim.items():
        pose_NA[:, ANIMATION.index(name)] = value
    return pose_NA


def test_characters_differ_are_finite_and_repeat_with_the_seed():
    rgb = render(characters(64), neutral(64), 64)
    assert rgb.isfinite().all() and rgb.min() >= -1 and rgb.max() <= 1
    flat = rgb.flatten(1)
    apart = torch.cdist(flat, flat, p=1) / flat.shape[1] + torch.eye(64)
    assert apart.min() > 0.05, "two of 64 characters look alike"
    assert torch.equal(rgb[:7], render(characters(64)[:7], neutral(7), 64))


def test_every_part_appears_about_as_often_as_it_should():
    id_NP = characters(1000, seed=3)
    for name in PARTS:
        share = (id_NP[:, column(name)] != 0).float().mean()
        assert 0.02 < share < 0.65, f"{name}: {share:.3f}"
    outlined, large = id_NP[:, column("ink")] > 0, id_NP[:, column("eye_size")] > 1.09
    assert 0.45 < outlined.float().mean() < 0.55 and (large & outlined).any() and not (large & ~outlined).any()


@pytest.mark.parametrize("name", PARTS)
def test_every_part_shows(name: str):
    id_NP = characters(8, seed=5)
    for other in PARTS:
        id_NP[:, column(other)] = 0
    for carrier in {"square": ["glasses"], "hat_fold": ["hat"], "hat_brim": ["hat"], "hat_bobble": ["hat"]}.get(name, []):
        id_NP[:, column(carrier)] = 1
    id_NP[:, column("hair_alpha")] = 1
    without = render(id_NP, neutral(8))
    id_NP[:, column(name)] = {"hat_brim": 0.5, "hat_bobble": 0.13}.get(name, 1.0)
    change = (render(id_NP, neutral(8)) - without).abs().mean((1, 2, 3))
    assert (change > 3e-4).sum() >= 5 and (name in ("hair_curl", "earring") or change.min() > 3e-4), change


def test_boxed_painting_equals_painting_the_whole_image(monkeypatch):
    id_NP, pose_NA = characters(96, seed=6), extremes({"open": 1.0, "wide": 1.0, "brow": 1.0}).repeat(12, 1)
    pose_NA[::2, :2] = 0
    boxed = render(id_NP, pose_NA)
    monkeypatch.setattr(Rasterizer, "box", lambda self, rect, body=False: (slice(0, self.size), slice(0, self.size)))
    torch.testing.assert_close(boxed, render(id_NP, pose_NA), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ("wide", "blink", "brow"))
def test_mouth_and_eyes_stay_in_their_boxes_in_every_pose(name: str):
    id_NP = characters(1500, seed=7)
    brow_top = id_NP[:, [column(n) for n in ("brow_width", "brow_arch")]].sum(1) + 0.1 * id_NP[:, column("eye_size")]
    reach = {"wide": id_NP[:, column("mouth_w")], "brow": brow_top, "blink": id_NP[:, column("eye_size")]}[name]
    top, bottom, left, right = mouth_box() if name == "wide" else eyes_box()
    worst = torch.cat([reach.topk(12).indices, id_NP[:, column("rest_scale")].topk(4).indices])
    id_NP = id_NP[worst].repeat_interleave(8, 0)
    id_NP[:, column("hat")] = 0
    for opening in (0.0, 1.0):
        rest_NA, moved_NA = (extremes({"open": opening, "brow": 1.0, name: v}).repeat(16, 1) for v in (0.0, 1.0))
        change = (render(id_NP, moved_NA) - render(id_NP, rest_NA)).abs().amax(1)
        change[:, top:bottom, left:right] = 0
        assert change.max() == 0


def test_gradients_reach_all_of_identity_and_animation():
    id_NP = characters(24, seed=8)
    pose_NA = neutral(24) + 0.2 * torch.rand(24, 7, generator=torch.Generator().manual_seed(1))
    id_NP, pose_NA = id_NP.requires_grad_(), pose_NA.requires_grad_()
    weight = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    (render(id_NP, pose_NA, 64) * weight).sum().backward()
    assert id_NP.grad is not None and pose_NA.grad is not None
    assert id_NP.grad.isfinite().all() and pose_NA.grad.isfinite().all()
    reached = id_NP.grad.abs().amax(0) > 0
    assert reached.all(), [n for n, r in zip(IDENTITY, reached) if not r]
    assert (pose_NA.grad.abs().amax(0) > 0).all()
    plain = render(id_NP.detach(), pose_NA.detach(), 64)
    torch.testing.assert_close(plain, render(id_NP, pose_NA, 64).detach(), rtol=0, atol=1e-5)
