"""FramePack: 19 latent frames of the past as few tokens, the older the coarser."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from everface.networks.transformer.layers import Patchify

MOTION_FRAMES = 19  # newest 1 at full grid, 2 before it pooled by 2, 16 oldest pooled by 4
MOTION_GROUPS = [((-1,), 1), ((-3,), 2), ((-19, -14, -9, -4), 4)]  # (time positions, pooling) in token order


class FramePack(nn.Module):
    """Motion latents [B, C, T, h, w] -> tokens [B, M, D], M = P + P/4 + 4*P/16 with P the tokens of a frame, of `patch` latents each.

    The last 19 frames count; fewer are padded in front with zeros. Token order: newest, 2x, 4x (its oldest frame first).
    Rows and columns that do not fill a coarse patch are left out of it.
    """

    def __init__(self, channels: int, dim: int, patch: tuple[int, int, int] = (1, 2, 2)) -> None:
        super().__init__()
        rows, cols = patch[1:]
        self.proj = Patchify(channels, dim, patch)
        self.proj_2x = Patchify(channels, dim, (2, 2 * rows, 2 * cols))
        self.proj_4x = Patchify(channels, dim, (4, 4 * rows, 4 * cols))

    def forward(self, motion_BCThw: torch.Tensor) -> torch.Tensor:
        motion = motion_BCThw[:, :, -MOTION_FRAMES:]
        motion = F.pad(motion, (0, 0, 0, 0, MOTION_FRAMES - motion.shape[2], 0))
        oldest, middle, newest = motion.split((16, 2, 1), dim=2)
        groups = (self.proj(newest), self.proj_2x(middle), self.proj_4x(oldest))
        return torch.cat([tokens.flatten(1, 2) for tokens in groups], dim=1)


def motion_tokens(rows: int, cols: int) -> int:
    """How many tokens FramePack makes on a full grid of rows x cols tokens."""
    return sum(len(times) * (rows // factor) * (cols // factor) for times, factor in MOTION_GROUPS)
