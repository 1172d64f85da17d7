"""A small network that maps five frames of a mouth, and the audio around them, into one space: near means in sync.

Two towers of convolutions, about 0.3 M parameters, trained on drawn characters by `genbench/sync_training.py` and shipped. As it has seen drawn
mouths only, its offset and confidence on other faces are indications: SyncNet with its published weights is the measure for those.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from everface.core.config import SAMPLES_PER_FRAME
from everface.networks.audio.features import mel_filters

WEIGHTS = Path(__file__).parents[1] / "models" / "av_sync.safetensors"
FRAMES = 5  # of a window, SyncNet's length
LEAD = 2  # frames of audio before the window: a mouth follows what it says
MELS, FFT, HOP = 40, 512, 160
HOPS = SAMPLES_PER_FRAME // HOP * (FRAMES + LEAD)
MOUTH_HW = (32, 48)
DIM = 32


class AVNetwork(nn.Module):
    """`embed_mouth` and `embed_audio` return unit vectors [N, DIM]."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(
            _conv(nn.Conv2d(FRAMES, 32, 3, 2, 1)), _conv(nn.Conv2d(32, 48, 3, 2, 1)), _conv(nn.Conv2d(48, 64, 3, 2, 1)),
            nn.Flatten(), nn.Linear(64 * 4 * 6, 96), nn.SiLU(), nn.Linear(96, DIM),
        )  # fmt: skip
        self.audio = nn.Sequential(
            _conv(nn.Conv1d(MELS, 64, 3, 1, 1)), _conv(nn.Conv1d(64, 64, 3, 2, 1)), _conv(nn.Conv1d(64, 64, 3, 2, 1)),
            nn.Flatten(), nn.Linear(64 * HOPS // 4, 96), nn.SiLU(), nn.Linear(96, DIM),
        )  # fmt: skip

    def embed_mouth(self, mouth_NFhw: Tensor) -> Tensor:
        """Windows of `FRAMES` gray mouths of MOUTH_HW, each window with mean 0 and deviation 1."""
        return F.normalize(self.visual(mouth_NFhw), dim=1)

    def embed_audio(self, mel_NMH: Tensor) -> Tensor:
        """Log-mel windows of HOPS hops, as `audio_windows` makes them."""
        return F.normalize(self.audio(mel_NMH), dim=1)


def mouth_windows(mouth_Thw: Tensor) -> Tensor:
    """Gray mouths of MOUTH_HW, one a frame, to windows [T - FRAMES + 1, FRAMES, h, w] with mean 0 and deviation 1."""
    windows = mouth_Thw.float().unfold(0, FRAMES, 1).permute(0, 3, 1, 2)
    mean = windows.mean((1, 2, 3), keepdim=True)
    return (windows - mean) / windows.std((1, 2, 3), keepdim=True).clamp(min=1e-4)


def audio_windows(pcm_S: Tensor, frames: int) -> Tensor:
    """Log-mel energies of 16 kHz audio as windows [frames - FRAMES + 1, MELS, HOPS]; window n belongs to frames n .. n + 4."""
    S = frames * SAMPLES_PER_FRAME
    pcm_S = F.pad(pcm_S[:S].float(), (LEAD * SAMPLES_PER_FRAME + FFT // 2, max(0, S - len(pcm_S)) + FFT // 2))
    power_FH = torch.stft(pcm_S, FFT, HOP, window=torch.hann_window(FFT), center=False, return_complex=True).abs().square()
    mel_MH = (mel_filters(MELS, FFT // 2 + 1).T @ power_FH + 1e-5).log() / 4
    return mel_MH.unfold(1, HOPS, SAMPLES_PER_FRAME // HOP).permute(1, 0, 2)[: frames - FRAMES + 1]


@cache
def shipped() -> AVNetwork:
    """The network with the shipped weights."""
    network = AVNetwork()
    network.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return network.eval().requires_grad_(False)


def _conv(conv: nn.Module) -> nn.Module:
    return nn.Sequential(conv, nn.SiLU())

