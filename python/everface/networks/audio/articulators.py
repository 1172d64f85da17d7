"""Where jaw, lips and tongue are, from log-mel features: dilated convolutions with a short look-ahead (`networks.motion.ARTICULATORS`).

Lips move before their sound, and what audio says of them is the same for every face, so it is learned from speech alone, which is a hundred times
cheaper than pictures (`train.heads.articulation`), and drawn by the transformer. How far loud speech opens the jaw is computed, not learned
(`jaw_gain`). Legend: B mel bands, C feature channels, D width, T video frames, S samples.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everface.core.config import SAMPLES_PER_FRAME
from everface.core.errors import BadWeights
from everface.networks.motion import ARTICULATORS

FILE = "articulators.safetensors"  # beside the weights
AHEAD_FRAMES = 2  # that are heard before a frame is shown: they add to the latency
LOUDNESS_FRAMES, LOUDNESS_DB = 3, (-45.0, -14.0)  # what loudness is measured over; what counts as 0 and as 1
_VECTORS = 4  # of the features a video frame: 100 a second
_TAPS, _HALVING_TAPS = (5, 3), 4  # of the first and of the residual convolutions; of those that halve the rate
_DILATIONS = ((1, 1, 2), (1, 2), (1, 2, 4, 8))  # of the residual convolutions at 100, 50 and 25 vectors a second


def _other_frames() -> int:
    """That a frame hears, before it and after it."""
    reach, step = _TAPS[0], 1  # in vectors: what one output hears, and how far apart outputs are
    for n, dilations in enumerate(_DILATIONS):
        reach += (_HALVING_TAPS - 1) * step if n else 0
        step *= 2 if n else 1
        reach += (_TAPS[1] - 1) * sum(dilations) * step
    return -(-reach // _VECTORS) - 1


PAST_FRAMES = _other_frames() - AHEAD_FRAMES  # before a frame that matter to it


class ArticulatorNet(nn.Module):
    """Float32, on the CPU. Thread-safe after loading. The jaw is that of a medium voice: `apply_loudness` makes it that of this one.

    Lips are shut for hardly longer than a video frame, so the first convolutions see the 100 vectors a second that the features have; two of them halve that.
    Raises BadWeights for features of another rate."""

    def __init__(self, channels: int, fine: int = 160, width: int = 272) -> None:
        super().__init__()
        if channels % _VECTORS:
            raise BadWeights(f"what reads the mouth from audio needs features of {_VECTORS} vectors a video frame, and {channels} channels are not: set audio.hops to {_VECTORS}")
        sizes = (fine, fine, width)
        self.into = nn.ModuleList(
            [
                nn.Conv1d(channels // _VECTORS, fine, _TAPS[0]),
                *(nn.Conv1d(before, after, _HALVING_TAPS, stride=2) for before, after in pairwise(sizes)),
            ]
        )
        self.residual = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(size, size, _TAPS[1], dilation=d) for d in dilations) for size, dilations in zip(sizes, _DILATIONS, strict=True)
        )
        self.out = nn.Conv1d(width, len(ARTICULATORS), 1)

    def forward(self, features_NCT: Tensor) -> Tensor:
        """[N, C, PAST_FRAMES + T + AHEAD_FRAMES] -> [N, 6, T] in 0..1."""
        x = features_NCT.unflatten(1, (_VECTORS, -1)).permute(0, 2, 3, 1).flatten(2)  # [N, B, 4T]
        for into, residual in zip(self.into, self.residual, strict=True):
            assert isinstance(into, nn.Conv1d) and isinstance(residual, nn.ModuleList)
            skip = (x.shape[-1] - into.kernel_size[0]) % into.stride[0]  # the last vector counts, not the first
            x = F.gelu(into(x[..., skip:]))
            for conv in residual:
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
