"""Resampling of audio that comes in chunks."""

from __future__ import annotations

import numpy as np
import soxr


class Resampler:
    """Chunks float32 [S] or [S, channels], at rates that may change from one to the next. S samples of R Hz become round(S * to_hz / R) in all;
    equal rates change nothing. Not thread-safe."""

    def __init__(self, to_hz: int, channels: int) -> None:
        self._to_hz, self._channels = to_hz, channels
        self._stream: soxr.ResampleStream | None = None
        self._rate_hz = 0
        self._empty = np.zeros(0, np.float32)

    def run(self, x: np.ndarray, rate_hz: int) -> np.ndarray:
        """What this chunk adds, and at a change of rate the end of what was before."""
        before = self.rest() if self._rate_hz not in (0, rate_hz) else x[:0]
        if rate_hz != self._rate_hz:
            self._rate_hz = rate_hz
            self._stream = None if rate_hz == self._to_hz else soxr.ResampleStream(rate_hz, self._to_hz, self._channels, dtype="float32")
        self._empty = x[:0]
        out = x if self._stream is None else self._stream.resample_chunk(np.ascontiguousarray(x))
        return np.concatenate([before, out]) if len(before) else out

    def rest(self) -> np.ndarray:
        """What the filter still holds, at the end."""
        return self._empty if self._stream is None else self._stream.resample_chunk(self._empty, last=True)
