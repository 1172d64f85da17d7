"""A caller's audio: checked, kept as it came for playback, and resampled to the model's rate as a stream."""

from __future__ import annotations

import numpy as np
import torch

from everface.core.errors import BadInput
from everface.media.decoding.downmix import MonoMixer
from everface.media.resampler import Resampler

RATES_HZ = (8_000, 192_000)
MOST_CHANNELS = 2
PEAK = 8.0  # float audio beyond it is integers in disguise

Samples = np.ndarray | torch.Tensor | bytes | bytearray | memoryview


def as_array(samples: Samples, channels: int = 1) -> np.ndarray:
    """[S, C] int16 or float32. Bytes are int16, interleaved, in the machine's byte order. Raises BadInput."""
    if isinstance(samples, bytes | bytearray | memoryview):
        if len(samples) % (2 * channels):
            raise BadInput(f"{len(samples)} bytes are no whole number of {channels}-channel int16 samples: push whole samples")
        array = np.frombuffer(samples, np.int16).reshape(-1, channels)
    elif isinstance(samples, torch.Tensor):
        array = samples.detach().cpu().numpy()
    elif isinstance(samples, np.ndarray):
        array = samples
    else:
        raise BadInput(f"audio of type {type(samples).__name__} cannot be used: push bytes, a numpy array or a torch tensor")
    if array.dtype.type not in (np.int16, np.float32):
        raise BadInput(f"audio of {array.dtype} cannot be used: push int16, or float32 in -1..1")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] not in range(1, MOST_CHANNELS + 1):
        raise BadInput(f"audio of shape {list(array.shape)} cannot be used: push [samples] or [samples, 1 or 2 channels]")
    if array.dtype == np.float32 and array.size:
        peak = float(np.abs(array).max())
        if not np.isfinite(peak):
            raise BadInput("the audio holds values that are not finite: repair it before pushing")
        if peak > PEAK:
            raise BadInput(f"float audio with a peak of {peak:.0f} is not in -1..1: divide it by 32768, or push int16")
    return array


class StreamResampler:
    """Mono float32 at the model's rate, from one segment's audio. Not thread-safe."""

    def __init__(self, rate_hz: int, to_hz: int) -> None:
        if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
            raise BadInput(f"audio at {rate_hz} Hz cannot be used: push {RATES_HZ[0]} to {RATES_HZ[1]} Hz")
        self.rate_hz, self.to_hz = rate_hz, to_hz
        self._resampler = Resampler(to_hz, 1)
        self._mixer: MonoMixer | None = None

    def push(self, samples_SC: np.ndarray, last: bool = False) -> torch.Tensor:
        """What these samples add to the resampled audio; `last` flushes the filter."""
        scaled_SC = samples_SC.astype(np.float32) / np.float32(32768.0 if samples_SC.dtype == np.int16 else 1.0)
        if self._mixer is None or len(self._mixer.channels) != scaled_SC.shape[1]:
            self._mixer = MonoMixer(("FC",) if scaled_SC.shape[1] == 1 else ("FL", "FR"), self.rate_hz)
        mono = self._resampler.run(self._mixer.mix(scaled_SC), self.rate_hz)
        if last:
            mono = np.concatenate([mono, self._resampler.rest()])
        return torch.from_numpy(np.ascontiguousarray(mono, np.float32))
