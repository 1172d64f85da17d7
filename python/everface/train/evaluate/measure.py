"""All measures of one clip of a held-out character."""

from __future__ import annotations

import torch
from torch import Tensor

from everface.train.engine.statistics import correlation
from everface.train.evaluate import metrics
from everface.train.evaluate.bars import Row
from everface.train.evaluate.held_out import HeldOut
from everface.train.evaluate.readers.lip_reader import LipReader

FIT_FRAMES = 4


def measure(
    reader: LipReader, clip: HeldOut, made_T3HW: Tensor, block_frames: int = metrics.BLOCK_FRAMES, fit_frames: int | None = None
) -> tuple[Row, Tensor]:
    """The measures of a video of this clip, those of the codec apart, and the mouth opening that was read from it. The longer of video and
    clip is cut. The pose is fitted to `fit_frames` of its frames, FIT_FRAMES by default."""
    fit_frames = fit_frames or FIT_FRAMES
    T = min(len(made_T3HW), len(clip.truth_T3HW), len(clip.open_T))
    made, truth, open_T, wide_T = (x[:T] for x in (made_T3HW, clip.truth_T3HW, clip.open_T, clip.wide_T))
    read = reader.read(made)
    at = torch.linspace(T * 0.3, T - 1, fit_frames).long()
    fit, eyes = clip.fit(made[at], torch.stack(read, 1)[at])
    block, latent = metrics.edge_flicker(made, block_frames)
    row = {
        "open_corr": correlation(read[0], open_T),
        "lag": float(metrics.lag(read[0], open_T)),
        "open_amplitude": metrics.amplitude_ratio(read[0], open_T),
        "wide_corr": correlation(read[1], wide_T),
        "fit_psnr": fit,
        "eyes_psnr": eyes,
        "sharpness": metrics.sharpness(made) / metrics.sharpness(truth),
        "block_flicker": block,
        "latent_flicker": latent,
        "motion": metrics.motion_energy(made) / metrics.motion_energy(truth),
        "blinks": float(metrics.count_blinks(read[2])),
        "truth_blinks": float(metrics.count_blinks(reader.read(truth)[2])),
    }
    return row, read[0]
