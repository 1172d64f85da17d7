"""Lip-sync where the truth is known: drawn characters, of which the mouth's opening follows from the audio by a rule.

A small network reads the opening from the pixels (`train/evaluate/readers/lip_reader.py`; its weights are shipped). lip_corr = Pearson correlation of
read and true opening at the best lag; lip_lag = that lag in frames, positive if the mouth is late; lip_amplitude = ratio of their standard
deviations. The truth follows the audio of the file, so an error of the container is seen as well.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from everface.core.config import SAMPLES_PER_FRAME
from everface.genbench.metrics.measurement import Measures, NotAvailable
from everface.genbench.windows import ClipWindow
from everface.train.engine.statistics import correlation
from everface.train.evaluate import metrics
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.synthetic.motion import mouth_targets

WEIGHTS = Path(__file__).parents[1] / "models" / "lip_reader.safetensors"
SIZE = 128  # pixels that the reader was trained on


class LipTruth:
    names = ("lip_corr", "lip_lag", "lip_amplitude")

    def measure(self, window: ClipWindow) -> Measures:
        if window.truth != "drawn":
            raise NotAvailable("the true motion of this sample's mouth is not known: only drawn characters have it")
        _, H, W, _ = window.frames_THW3.shape
        if H != W:
            raise NotAvailable(f"the video is {W}x{H}, but drawn samples are square: make it square, uncropped")
        read_T = torch.cat([shipped_reader().read(_small(window, at))[0] for at in range(0, len(window.frames_THW3), 64)])
        audio_S = torch.cat([window.lead_S, window.pcm_S])
        true_T = mouth_targets(audio_S)[0][len(window.lead_S) // SAMPLES_PER_FRAME :]
        T = min(len(read_T), len(true_T))
        read_T, true_T = read_T[:T], true_T[:T]
        if T < 25 or true_T.std() < 1e-3:
            raise NotAvailable("less than a second of speech: nothing to correlate")
        if read_T.std() < 1e-4:
            return {"lip_corr": 0.0, "lip_amplitude": 0.0}
        lag = metrics.lag(read_T, true_T)
        aligned = read_T[max(lag, 0) : T + min(lag, 0)], true_T[max(-lag, 0) : T - max(lag, 0)]
        amplitude = metrics.amplitude_ratio(read_T, true_T)
        return {"lip_corr": correlation(*aligned), "lip_lag": float(lag), "lip_amplitude": amplitude}


@cache
def shipped_reader() -> LipReader:
    """The lip reader with the shipped weights."""
    reader = LipReader()
    reader.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return reader.eval()


def _small(window: ClipWindow, first: int) -> torch.Tensor:
    rgb = window.rgb(first, first + 64)
    if rgb.shape[-1] == SIZE:
        return rgb
    return torch.nn.functional.interpolate(rgb, (SIZE, SIZE), mode="bilinear", antialias=True)
