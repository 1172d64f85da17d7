"""Gives decoded frames the detail that the codec does not keep: what the reference image has and its decoded latent has not, where a frame is as it was.

A codec of 16x16 pixels a cell makes hair, skin and cloth soft. In a model with motion a head is still before the warp, so what its image shows is in
the same place in every frame. Where a frame differs from the decoded image (lips, lids, a shadow) the detail is another, and is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8  # pixels, over squares of which frames are compared
SAME, OTHER = 0.06, 0.18  # mean difference of colors in -1..1: up to where all detail is added, and from where none
SPREAD = 9  # cells, over squares of which, twice, a shade is a mean


class StillDetail:
    """Of one image. decoded_3HW: its latent decoded, image_3HW: itself; both in -1..1."""

    def __init__(self, image_3HW: Tensor, decoded_3HW: Tensor) -> None:
        self.decoded_3HW = decoded_3HW.float()
        self.missing_3HW = image_3HW.to(self.decoded_3HW) - self.decoded_3HW

    def add(self, video_3THW: Tensor) -> Tensor:
        """The frames with it, and with the image's shades, float32."""
        video_3THW = video_3THW.float()
        change_T3HW = (video_3THW - self.decoded_3HW[:, None]).transpose(0, 1)
        other_T1hw = F.max_pool2d(F.avg_pool2d(change_T3HW.abs().mean(1, keepdim=True), CELL), 3, stride=1, padding=1)
        share_T1hw = ((OTHER - other_T1hw) / (OTHER - SAME)).clamp(0, 1)
        shade_T3hw = mean_about(F.avg_pool2d(change_T3HW, CELL), share_T1hw)
        upsampled = F.interpolate(torch.cat([share_T1hw, shade_T3hw], 1), video_3THW.shape[-2:], mode="bilinear", align_corners=False)
        share_1THW, shade_3THW = upsampled.transpose(0, 1).split((1, 3))
        return video_3THW + share_1THW * self.missing_3HW[:, None] - shade_3THW


def mean_about(x_TChw: Tensor, weight_T1hw: Tensor) -> Tensor:
    """The weighted mean of a wide neighborhood of each cell: a shade that the transformer, which does not keep colors exactly, gave to what is still."""
    sums = torch.cat([x_TChw * weight_T1hw, weight_T1hw], 1)
    for _ in range(2):
        sums = F.avg_pool2d(sums, SPREAD, stride=1, padding=SPREAD // 2)
    return sums[:, :-1] / sums[:, -1:].clamp(min=1e-3)
