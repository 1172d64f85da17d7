"""The warp moves a head as a turn would, and leaves the rest."""

from __future__ import annotations

import torch

from everface.networks.motion import HEAD
from everface.networks.video.head_warp import flow_fields, warp_head

SIDE = 128


def head(**moved: float) -> torch.Tensor:
    return torch.tensor([moved.get(name, 0.0) for name in HEAD])[:, None]


def dots(*places: tuple[float, float]) -> torch.Tensor:
    """[3, 1, H, W] in -1..1: a soft dot at each place, in halves of the image."""
    y, x = torch.meshgrid(*2 * [(torch.arange(SIDE) + 0.5) / SIDE * 2 - 1], indexing="ij")
    image = sum(torch.exp(-((x - px).square() + (y - py).square()) / (2 * 0.03**2)) for px, py in places)
    return (2 * torch.as_tensor(image) - 1).expand(3, 1, SIDE, SIDE)


def center(video: torch.Tensor, near: tuple[float, float]) -> tuple[float, float]:
    """Where the dot near a place is."""
    y, x = torch.meshgrid(*2 * [(torch.arange(SIDE) + 0.5) / SIDE * 2 - 1], indexing="ij")
    weight = (video[0, 0] + 1) * (((x - near[0]).abs() < 0.2) & ((y - near[1]).abs() < 0.2))
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


def test_without_motion_a_frame_stays_as_it_is() -> None:
    video = torch.rand(3, 2, 64, 96) * 2 - 1
    assert torch.allclose(warp_head(video, torch.zeros(8, 2)), video, atol=1e-4)


def test_lips_move_as_measured_on_rendered_people() -> None:
    """0.083 of half the image for 0.1 radians of pitch and yaw, 0.07 a unit of shift: within a seventh."""
    lips = (0.0, 0.32)
    for moved, right, down in (
        (head(pitch=0.05), 0.0, 0.041), (head(yaw=0.05), 0.041, 0.0), (head(right=0.5), 0.035, 0.0), (head(up=0.5), 0.0, -0.035), (head(roll=0.1), -0.012, 0.0),
    ):  # fmt: skip
        x, y = center(warp_head(dots(lips), moved), lips)
        assert abs(x - lips[0] - right) < 0.007 and abs(y - lips[1] - down) < 0.007, (right, down, x, y)


def test_ears_turn_less_than_the_nose_and_shoulders_and_corners_stay() -> None:
    moved = head(yaw=0.08, pitch=0.04, right=0.3)
    nose, ear, shoulder, corner = (0.0, 0.1), (0.5, 0.05), (0.4, 0.93), (-0.9, 0.9)
    by = [center(warp_head(dots(place), moved), place)[0] - place[0] for place in (nose, ear, shoulder, corner)]
    assert by[0] > by[1] + 0.02 > 0.02 and abs(by[2]) < 0.003 and abs(by[3]) < 0.001


def test_a_mouth_gets_wider_and_taller_about_its_middle_and_eyes_stay() -> None:
    mouth, corner, other_corner, lower_lip, eye = (0.1, 0.3), (0.25, 0.3), (-0.05, 0.3), (0.1, 0.4), (0.25, -0.1)
    for moved, place, right, down in (
        (head(wide=0.12), corner, 0.0125, 0.0), (head(wide=0.12), other_corner, -0.0125, 0.0), (head(wide=-0.13), corner, -0.0137, 0.0),
        (head(tall=0.15), lower_lip, 0.0, 0.0096), (head(wide=0.12, tall=0.15), mouth, 0.0, 0.0), (head(wide=0.12, tall=0.15), eye, 0.0, 0.0),
    ):  # fmt: skip
        x, y = center(warp_head(dots(place), moved, mouth), place)
        assert abs(x - place[0] - right) < 0.003 and abs(y - place[1] - down) < 0.003, (place, x, y)
    video = dots(corner, eye)
    assert torch.allclose(warp_head(video, head(wide=0.12, tall=0.15)), video, atol=1e-4)  # where the mouth is not known


def test_fields_neither_fold_nor_jump() -> None:
    """Of the largest motion that a session draws, no part of the image is turned inside out."""
    fields = flow_fields(256, 256, torch.device("cpu"), (0, 20))
    flow = torch.einsum("k,khwc->hwc", torch.tensor([0.15, 0.08, 0.06, 0.2, 0.12, 0.1, 0.07, 0.06, 0.12, 0.15]), fields)
    slope = 128 * torch.stack([flow.diff(dim=0)[:, :-1], flow.diff(dim=1)[:-1]]).abs()
    assert slope.max() < 0.6
