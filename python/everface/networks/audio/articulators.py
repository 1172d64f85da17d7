"""Where jaw, lips and tongue are, from log-mel features: a few dilated convolutions with a short look-ahead (`networks.motion.ARTICULATORS`).

Lips move before their sound, and what audio says of them is the same for every face, so it is learned from speech alone, which is a hundred times
cheaper than pictures (`train.heads.articulation`), and drawn by the transformer. Legend: C feature channels, D width, T video frames.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from everface.networks.motion import ARTICULATORS

FILE = "articulators.safetensors"  # beside the weights
AHEAD_FRAMES = 2  # that are heard before a frame is shown: they add to the latency
_TAPS, _DILATIONS = (5, 3, 3, 3, 3, 3), (1, 1, 1, 2, 4, 8)
PAST_FRAMES = sum((taps - 1) * dilation for taps, dilation in zip(_TAPS, _DILATIONS, strict=True)) - AHEAD_FRAMES  # before a frame that matter to it


class ArticulatorNet(nn.Module):
    """Float32, on the CPU. Thread-safe after loading."""

    def __init__(self, channels: int, width: int = 256) -> None:
        super().__init__()
        sizes = (channels, *(width for _ in _TAPS[1:]))
        self.convs = nn.ModuleList(
            nn.Conv1d(size, width, taps, dilation=dilation) for size, taps, dilation in zip(sizes, _TAPS, _DILATIONS, strict=True)
        )
        self.out = nn.Conv1d(width, len(ARTICULATORS), 1)

    def forward(self, features_NCT: Tensor) -> Tensor:
        """[N, C, PAST_FRAMES + T + AHEAD_FRAMES] -> [N, 6, T] in 0..1."""
        x = F.gelu(self.convs[0](features_NCT))
        for conv in self.convs[1:]:
            y = F.gelu(conv(x))
            x = x[..., -y.shape[-1] :] + y
        return self.out(x).sigmoid()
