"""Where jaw, lips and tongue are, from log-mel features: a few dilated convolutions with a short look-ahead (`networks.motion.ARTICULATORS`).

Lips move before their sound, and what audio says of them is the same for every face, so it is learned from speech alone, which is a hundred times
cheaper than pictures (`train.heads.articulation`), and drawn by the transformer. How far loud speech opens the jaw is computed, not learned
(`jaw_gain`). Legend: C feature channels, D width, T video frames, S samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everface.core.config import SAMPLES_PER_FRAME
from everface.networks.motion import ARTICULATORS

FILE = "articulators.safetensors"  # beside the weights
AHEAD_FRAMES = 2  # that are heard before a frame is shown: they add to the latency
_TAPS, _DILATIONS = (5, 3, 3, 3, 3, 3), (1, 1, 1, 2, 4, 8)
LOUDNESS_FRAMES, LOUDNESS_DB = 3, (-45.0, -14.0)  # what loudness is measured over; what counts as 0 and as 1
PAST_FRAMES = sum((taps - 1) * dilation for taps, dilation in zip(_TAPS, _DILATIONS, strict=True)) - AHEAD_FRAMES  # before a frame that matter to it


class ArticulatorNet(nn.Module):
    """Float32, on the CPU. Thread-safe after loading. The jaw is that of a medium voice: `apply_loudness` makes it that of this one."""

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


def jaw_gain(pcm_S: Tensor, first: int, frames: int) -> Tensor:
    """How much further than a medium voice's the jaw opens, [T] 0.45..1.2: by the rms in dB of the last 120 ms. `first`: the frame of `pcm_S` to begin with;
    before its beginning it is silent."""
    samples = LOUDNESS_FRAMES * SAMPLES_PER_FRAME
    padded_S = F.pad(pcm_S, (samples, 0))[(first + 1) * SAMPLES_PER_FRAME :][: (frames - 1) * SAMPLES_PER_FRAME + samples]
    power_T = padded_S.double().unfold(0, samples, SAMPLES_PER_FRAME).square().mean(1)
    low, high = LOUDNESS_DB
    return (0.45 + 0.75 * ((10 * torch.log10(power_T + 1e-10) - low) / (high - low)).clamp(0, 1)).float()


def apply_loudness(articulators_AT: Tensor, gain_T: Tensor) -> Tensor:
    """[..., 6, T] with the jaw of a voice so loud, 0..1."""
    return torch.cat([(articulators_AT[..., :1, :] * gain_T[..., None, :]).clamp(max=1), articulators_AT[..., 1:, :]], -2)
