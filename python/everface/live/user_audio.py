"""What a listening person hears, on its way to the model."""

from __future__ import annotations

import numpy as np
import torch

from everface.live.audio_input import StreamResampler

KEPT_S = 0.5  # that waits at most: a listener answers what is said now


class UserAudio:
    """Mono audio at `rate_hz`, at most KEPT_S of it: beyond that the oldest is dropped. Not thread-safe."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz, self._resampler = rate_hz, StreamResampler(rate_hz, rate_hz)
        self._waiting_S = torch.zeros(0)

    def push(self, array_SC: np.ndarray, rate_hz: int) -> None:
        """Raises BadInput for a rate that cannot be used."""
        if rate_hz != self._resampler.rate_hz:
            self._resampler = StreamResampler(rate_hz, self._rate_hz)
        self._waiting_S = torch.cat([self._waiting_S, self._resampler.push(array_SC)])[-int(KEPT_S * self._rate_hz) :]

    def take(self, samples: int) -> torch.Tensor:
        """The oldest that wait, and silence for those that are missing."""
        taken_S, self._waiting_S = self._waiting_S[:samples], self._waiting_S[samples:]
        return torch.nn.functional.pad(taken_S, (0, samples - taken_S.numel()))
