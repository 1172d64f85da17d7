"""Normalizes the audio of a stream as wav2vec2 wants it, to mean 0 and deviation 1, without a jump from block to block.

A whole file is normalized by its own mean and deviation. A window of a stream has others, and they change with every pause in it: the same sample
would reach the model at another level in the next window. So the statistics are those of all audio so far, of the last minute above all.
"""

from __future__ import annotations

import torch

from everface.core.config import SAMPLE_RATE
from everface.runtime.model import Window

MEMORY = 60 * SAMPLE_RATE  # samples: older ones count for less and less


class AudioNormalizer:
    """One session's. `lookback`, `lookahead`: samples of a window before and behind its block. Not thread-safe."""

    def __init__(self, lookback: int, lookahead: int) -> None:
        self._around = lookback + lookahead
        self._turn: int | None = None
        self._count = self._sum = self._squares = 0.0

    def apply(self, window: Window) -> torch.Tensor:
        """A session's windows in order: float32 [lookback + block + lookahead] to the same, normalized. Samples that are exactly 0, of digital
        silence and of padding, stay 0 and do not count."""
        audio_S = window.audio_S
        new_S = audio_S if window.turn != self._turn else audio_S[self._around :]  # silence is before a turn's first window
        self._turn = window.turn
        self._add(new_S[new_S != 0].double())
        mean = self._sum / max(1.0, self._count)
        deviation = (max(0.0, self._squares / max(1.0, self._count) - mean**2) + 1e-7) ** 0.5
        return torch.where(audio_S != 0, (audio_S - mean) / deviation, audio_S)

    def _add(self, audio_S: torch.Tensor) -> None:
        self._count += audio_S.numel()
        self._sum += float(audio_S.sum())
        self._squares += float(audio_S.square().sum())
        if self._count > MEMORY:
            kept = MEMORY / self._count
            self._count, self._sum, self._squares = self._count * kept, self._sum * kept, self._squares * kept
