"""The frames of a square of a photograph, put back into it with soft edges."""

from __future__ import annotations

import numpy as np
from PIL import Image

from everface.core.errors import BadInput
from everface.media.face import Region

EDGE = 0.08  # of the square's side, over which the edge is soft
MOST_PIXELS = 4096 * 2304


class PasteBack:
    """The photograph is scaled so that the square has the size of the frames. Raises BadInput for a video that would be too large."""

    def __init__(self, image_HW3: np.ndarray, region: Region, side: int) -> None:
        height, width = image_HW3.shape[:2]
        scale = side / region.side
        self.height, self.width = (2 * max(1, round(length * scale / 2)) for length in (height, width))  # even, as H.264 wants
        if self.height * self.width > MOST_PIXELS:
            raise BadInput(f"the whole image would be a video of {self.width}x{self.height}, because its face is small: cut the image, or leave out --paste-back")
        self._image_HW3 = np.array(Image.fromarray(image_HW3).resize((self.width, self.height), Image.Resampling.LANCZOS))
        self._top, self._left = (min(round(at * scale), length - side) for at, length in ((region.top, self.height), (region.left, self.width)))
        rows, columns = (self._ramp(at, side, length) for at, length in ((self._top, self.height), (self._left, self.width)))
        self._weight_HW1 = (rows[:, None] * columns)[..., None]

    def apply(self, frames_THW3: np.ndarray) -> np.ndarray:
        """uint8 [T, height, width, 3] of uint8 frames of the square."""
        out = np.repeat(self._image_HW3[None], len(frames_THW3), 0)
        side = frames_THW3.shape[1]
        place = out[:, self._top : self._top + side, self._left : self._left + side]
        place[:] = np.round(place + self._weight_HW1 * (frames_THW3.astype(np.float32) - place)).astype(np.uint8)
        return out

    @staticmethod
    def _ramp(at: int, side: int, length: int) -> np.ndarray:
        """Weights [side] that rise from an edge, but not from one that is the photograph's own."""
        soft = max(1, round(EDGE * side))
        rise = (np.arange(side, dtype=np.float32) + 0.5) / soft
        weight = np.ones(side, np.float32)
        if at > 0:
            weight = np.minimum(weight, rise)
        if at + side < length:
            weight = np.minimum(weight, rise[::-1])
        return weight * weight * (3 - 2 * weight)
