"""The samples of a decoded frame."""

from __future__ import annotations

import av
import numpy as np

MOST_PLANES = 7  # PyAV counts a frame's planes up to a null pointer; a frame has eight places, so behind eight planes there is none, and it reads anything


def samples_of(frame: av.AudioFrame) -> np.ndarray:
    """[S, C] in the frame's own type, whatever the number of channels."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels > MOST_PLANES:
        to_packed = av.AudioResampler(format=frame.format.packed)
        packed = [*to_packed.resample(frame), *to_packed.resample(None)]
        return np.concatenate([plain.to_ndarray().reshape(-1, channels) for plain in packed])
    x = frame.to_ndarray()  # planar [C, S]; packed [1, S * C]
    return x.T if frame.format.is_planar else x.reshape(-1, channels)
