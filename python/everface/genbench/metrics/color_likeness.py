"""Likeness of colors to the reference image, always available: a coarse guard against another person or a drift of color.

color_likeness = mean over frames of sum_k min(p_k, q_k), where p and q are the histograms of 8 x 8 x 8 RGB bins inside the face box of frame and
reference, each smoothed over neighboring bins and summing to 1. 1 is the same distribution. It does not recognize faces: two people of like
colors score high. DINO-S does more, given its weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import FPS
from everface.genbench.metrics.measurement import Measures
from everface.genbench.windows import ClipWindow, cut_box

BINS = 8
EVERY = FPS // 5  # frames: five a second


class ColorLikeness:
    names = ("color_likeness",)

    def measure(self, window: ClipWindow) -> Measures:
        reference = histogram(cut_box(window.reference_HW3, window.face))
        values = [torch.minimum(histogram(frame), reference).sum().item() for frame in window.region(window.face)[::EVERY]]
        return {"color_likeness": sum(values) / len(values)}


def histogram(image_HW3: Tensor) -> Tensor:
    """Shares of the RGB bins, smoothed [BINS, BINS, BINS]."""
    bins_N3 = image_HW3.reshape(-1, 3).long() * BINS // 256
    index_N = (bins_N3[:, 0] * BINS + bins_N3[:, 1]) * BINS + bins_N3[:, 2]
    counts = torch.bincount(index_N, minlength=BINS**3).float().view(1, 1, BINS, BINS, BINS)
    smooth = F.avg_pool3d(counts, 3, 1, 1)[0, 0]
    return smooth / smooth.sum()
