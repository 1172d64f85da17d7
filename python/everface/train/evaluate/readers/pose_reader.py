"""A small CNN that reads the rotation of a rendered person's head. It is trained on true frames only, degraded as for the lip reader."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS = 64
UNIT = 0.1  # radians


class PoseReader(nn.Module):
    """Pitch, yaw and roll of the head in radians, as `heads.renderer.rotation` has them, from the whole frame at 64x64; 0.2 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 72, 96)
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 64), nn.SiLU(), nn.Linear(64, 3))

    def forward(self, rgb_N3HW: Tensor) -> Tensor:
        """Frames in -1..1 of any size -> [N, 3]."""
        small = rgb_N3HW if rgb_N3HW.shape[-1] == PIXELS else F.interpolate(rgb_N3HW, (PIXELS, PIXELS), mode="bilinear", align_corners=False, antialias=True)
        return UNIT * self.layers(small)

    @torch.no_grad()
    def read(self, rgb_T3HW: Tensor) -> Tensor:
        return torch.cat([self(part) for part in rgb_T3HW.split(64)])
