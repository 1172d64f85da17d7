"""Other views of a clip."""

from __future__ import annotations

import torch
from pytest import MonkeyPatch

from everface.train.chain import views
from everface.train.chain.views import other_view


def smooth() -> torch.Tensor:
    """Two frames [3, 2, 64, 64] in -1..1, smooth and different on each side."""
    x, y = torch.meshgrid(torch.linspace(-0.8, 0.8, 64), torch.linspace(-0.8, 0.8, 64), indexing="xy")
    return torch.stack([torch.stack([x, y, x * y]), torch.stack([-y, x, 0.5 * x])], 1)


def test_a_view_follows_from_its_numbers() -> None:
    video = smooth()
    one, again, other = other_view(video, 3, 1), other_view(video, 3, 1), other_view(video, 4, 1)
    assert one.shape == video.shape and one.abs().max() <= 1
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(other_view(video.flip(1), 3, 1), one.flip(1))  # every frame alike


def test_odd_views_are_mirrored(monkeypatch: MonkeyPatch) -> None:
    for name in ("ZOOM", "TILT", "SHIFT", "BEND", "HUE", "SATURATION", "GAIN", "GAMMA"):
        monkeypatch.setattr(views, name, 0.0)
    video = smooth()
    assert (other_view(video, 0, 1) - video.flip(-1)).abs().max() < 1e-3
    assert (other_view(video, 0, 2) - video).abs().max() < 1e-3


def test_a_bent_view_is_smooth() -> None:
    """Pixels move by some BEND of half the width, the same in all frames, and neighbors nearly alike, so nothing folds over."""
    moved_HW2 = views._bend(torch.Generator().manual_seed(1), [64, 64])[0]
    assert 0.3 * views.BEND < moved_HW2.std() < 1.5 * views.BEND
    pixel = 2 / 64
    assert max(moved_HW2.diff(dim=dim).abs().max() for dim in (0, 1)) < 0.5 * pixel


def test_gray_stays_gray_but_for_light(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(views, "GAIN", 0.0)
    gray = torch.full((3, 1, 16, 16), 0.2)
    found = other_view(gray, 5, 2)
    assert (found - found.mean()).abs().max() < 1e-3
