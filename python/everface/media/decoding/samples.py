"""The samples of a decoded frame."""

from __future__ import annotations

import av
import numpy as np

MOST_PLANES = 7  # PyAV counts a frame's planes up to a null pointer; a frame has eight places, so behind eight planes there is none, and it reads anything
WIDE = ("s64", "s64p")  # sample formats for which PyAV has no array


def samples_of(frame: av.AudioFrame) -> np.ndarray:
    """[S, C] in the frame's own type, float64 for integers of 64 bits, whatever the number of channels."""
    channels = frame.layout.nb_channels
    wide, planes = frame.format.name in WIDE, frame.format.is_planar and channels > MOST_PLANES
    if wide or planes:
        to_packed = av.AudioResampler(format="dbl" if wide else frame.format.packed)
        packed = [*to_packed.resample(frame), *to_packed.resample(None)]
        arrays = [plain.to_ndarray().reshape(-1, channels) for plain in packed]
        return np.concatenate(arrays) if arrays else np.zeros((0, channels), np.float32)
    x = frame.to_ndarray()  # planar [C, S]; packed [1, S * C]
    return x.T if frame.format.is_planar else x.reshape(-1, channels)
