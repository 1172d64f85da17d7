"""SyncNet's confidence and distance (Chung and Zisserman, "Out of time", 2016) of any two series of embeddings.

    d[t, s] = |v[t] - a[t + s]| for shifts s = -SHIFT .. SHIFT;   m[s] = mean over t of d[t, s]
    distance = min m;   confidence = median m - min m;   offset = -argmin m, in frames, positive if the video is late

SyncNet's program pads the audio's embeddings with zeros at both ends, and so does this for its published figures (`pad`); without it, only
pairs that exist are averaged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 15  # frames, each way
EPSILON = 1e-6  # added to differences, as torch's pairwise_distance does


class SyncResult(NamedTuple):
    """Confidence (Sync-C), distance (Sync-D) and offset in frames."""

    confidence: float
    distance: float
    offset: int


def search_offset(video_TD: Tensor, audio_TD: Tensor, pad: bool, shift: int = SHIFT) -> SyncResult:
    """The offset at which two series of embeddings, one a frame, are nearest. T must be above 2 * `shift` without `pad`."""
    T = min(len(video_TD), len(audio_TD))
    video_TD, audio_TD = video_TD[:T], audio_TD[:T]
    means = []
    if pad:
        padded = F.pad(audio_TD, (0, 0, shift, shift))
        means = [F.pairwise_distance(video_TD, padded[s : s + T], eps=EPSILON).mean() for s in range(2 * shift + 1)]
    else:
        for s in range(-shift, shift + 1):
            seen, said = video_TD[max(-s, 0) : T - max(s, 0)], audio_TD[max(s, 0) : T + min(s, 0)]
            means.append(F.pairwise_distance(seen, said, eps=EPSILON).mean())
    mean_S = torch.stack(means)
    best = int(mean_S.argmin())
    return SyncResult((mean_S.median() - mean_S[best]).item(), mean_S[best].item(), shift - best)
