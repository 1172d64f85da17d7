"""The codec's own seams are measured where a stream has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from everface.train.evaluate.metrics import edge_flicker, frame_change
from everface.train.evaluate.run import reconstruct


class Slides:
    """A codec that has one image per latent: the first frame alone, then four at a time."""

    def encode(self, video_13THW: torch.Tensor) -> torch.Tensor:
        assert video_13THW.shape[2] % 4 == 1
        return video_13THW

    def decode(self, z_13THW: torch.Tensor) -> torch.Tensor:
        fours = z_13THW[:, :, 1:].unflatten(2, (-1, 4)).mean(3, keepdim=True).expand(-1, -1, -1, 4, -1, -1)
        return torch.cat([z_13THW[:, :, :1], fours.flatten(2, 3)], dim=2)


@pytest.mark.parametrize("frames", [24, 25, 27])
def test_a_codecs_seams_are_a_streams(frames: int) -> None:
    rgb_T3HW = torch.rand(frames, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    codec: Any = Slides()
    out = reconstruct(codec, rgb_T3HW)
    assert out.shape == rgb_T3HW.shape
    moved = [i + 1 for i, change in enumerate(frame_change(out).tolist()) if change > 1e-6]
    assert moved == [n for n in range(1, frames) if n % 4 == 0]
    assert edge_flicker(out) == (float("inf"), float("inf"))
