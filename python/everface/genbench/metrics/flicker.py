"""Temporal flicker, as VBench defines it (Huang et al. 2024, arXiv 2311.17982, "temporal flickering").

    t_flicker = (255 - mean |I[t + 1] - I[t]|) / 255, gray levels of 0..255, over all pixels, channels and pairs of frames

1 is a still image, so it is only to be read beside `motion`. block_flicker: the change at block edges, every 12 frames, over the change inside
blocks; 1 is seamless. It has a meaning for systems that generate blocks of 12 frames, as everface does.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from everface.core.config import FPS
from everface.genbench.metrics.measurement import Measures
from everface.genbench.windows import ClipWindow

BLOCK = 12


class Flicker:
    names = ("t_flicker", "block_flicker")

    def measure(self, window: ClipWindow) -> Measures:
        change_T = frame_changes(window.frames_THW3)
        if not len(change_T):
            return {}
        found = {"t_flicker": (255 - change_T.mean().item()) / 255}
        at = torch.arange(1, len(change_T) + 1) + round(window.begin_s * FPS)
        edge, inside = change_T[at % BLOCK == 0], change_T[at % 4 != 0].mean().item()
        if len(edge) and inside > 1e-3 and math.isfinite(inside):
            found["block_flicker"] = edge.mean().item() / inside
        return found


def frame_changes(frames_THW3: torch.Tensor) -> torch.Tensor:
    """Mean absolute change from each frame to the next, in gray levels [T - 1]."""
    return torch.tensor([(b.float() - a.float()).abs().mean().item() for a, b in pairwise(frames_THW3)])
