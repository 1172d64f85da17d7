"""What the codec loses comes back where a frame is still, and only there."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from everface.networks.video.still_detail import StillDetail

SIDE = 128


def image() -> torch.Tensor:
    """[3, H, W]: fine noise over broad shades."""
    g = torch.Generator().manual_seed(1)
    broad = F.interpolate(torch.randn(1, 3, 4, 4, generator=g), (SIDE, SIDE), mode="bilinear")[0]
    return 0.3 * broad + 0.2 * torch.randn(3, SIDE, SIDE, generator=g)


def soft(image_3HW: torch.Tensor) -> torch.Tensor:
    """As a codec leaves it."""
    return F.avg_pool2d(image_3HW[None], 9, stride=1, padding=4, count_include_pad=False)[0]


def test_a_still_frame_becomes_the_image_and_its_shades_too() -> None:
    detail = StillDetail(image(), soft(image()))
    shade = torch.tensor([0.03, -0.02, 0.01])[:, None, None]
    frames = torch.stack([soft(image()), soft(image()) + shade], 1)
    assert (detail.add(frames) - image()[:, None]).abs().max() < 1e-5


def test_where_a_frame_differs_it_stays_as_it_is_decoded() -> None:
    detail, frame = StillDetail(image(), soft(image())), soft(image())
    frame[:, 48:80, 48:80] = torch.tensor([0.9, -0.9, -0.9])[:, None, None]  # a mouth opens
    added = detail.add(frame[:, None])[:, 0]
    assert (added - frame)[:, 48:80, 48:80].abs().max() < 0.02
    far = torch.ones(SIDE, SIDE, dtype=torch.bool)
    far[24:104, 24:104] = False
    assert (added - image())[:, far].abs().max() < 0.02


def test_frames_are_seen_one_by_one() -> None:
    detail = StillDetail(image(), soft(image()))
    frames = soft(image())[:, None] + 0.1 * torch.randn(3, 5, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    apart = torch.cat([detail.add(frame) for frame in frames.split(1, dim=1)], dim=1)
    assert torch.allclose(detail.add(frames), apart, atol=1e-6)
