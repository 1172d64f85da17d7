"""How much a face moves: guards against the frozen faces that score well in every image metric.

motion = mean |I[t + 1] - I[t]| inside the face box, gray levels. expression_std = mean over the box's pixels of their standard deviation over
time, gray levels: the pixel counterpart of the 3DMM's ExpVar. frozen = share of frames that differ from the frame before by less than
FROZEN gray levels on average; 1 is a still image. Without a face box, the whole frame is taken.
"""

from __future__ import annotations

from everface.genbench.metrics.flicker import frame_changes
from everface.genbench.metrics.measurement import Measures
from everface.genbench.windows import ClipWindow

FROZEN = 0.02  # gray levels: coding noise of a still image is below, a blink of small eyes above


class Motion:
    names = ("motion", "expression_std", "frozen")

    def measure(self, window: ClipWindow) -> Measures:
        face = window.region(window.face)
        change_T = frame_changes(face)
        if not len(change_T):
            return {}
        gray_THW = face.float().mean(3)
        return {
            "motion": change_T.mean().item(),
            "expression_std": gray_THW.std(0, correction=0).mean().item(),
            "frozen": (change_T < FROZEN).float().mean().item(),
        }
