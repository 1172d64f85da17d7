"""Leads from the image on the screen to frames that do not follow from it, as after an interruption: a short cross-fade instead of a jump."""

from __future__ import annotations

import numpy as np

FRAMES = 8  # 0.32 s: a step of a ninth of the difference is no more than ordinary motion


class Fade:
    """Only what is on the screen already fades out; nothing that was made and not shown is seen. Not thread-safe."""

    def __init__(self) -> None:
        self._from_HW3: np.ndarray | None = None
        self._shown = 0

    def begin(self, shown_HW3: np.ndarray | None) -> None:
        """From this image to the next frames."""
        self._from_HW3, self._shown = shown_HW3, 0

    def apply(self, image_HW3: np.ndarray) -> np.ndarray:
        """The next frame, uint8, as it is to be shown."""
        if self._from_HW3 is None or self._from_HW3.shape != image_HW3.shape:
            return image_HW3
        self._shown += 1
        parts = FRAMES + 1
        mixed = self._from_HW3.astype(np.uint16) * (parts - self._shown) + image_HW3.astype(np.uint16) * self._shown
        if self._shown == FRAMES:
            self._from_HW3 = None
        return ((mixed + parts // 2) // parts).astype(np.uint8)
