"""How well a rollout's lips follow the sound and how lively it is, read off its latents: no decoder, no network.

    R = correlation(probe(mouth cells), loudness) + w * min(1, spread in time against the truth's)

The probe is a ridge regression from the mouth's cells to the loudness of the sound, fitted in closed form on true clips. Loudness is the
mean of a log-mel feature, so this reward is for the log-mel front end.
"""

from __future__ import annotations

import torch

from everface.train.data.clips import STILL_LATENTS, Clips
from everface.train.distill.rollout import PAST, VIDEO_FRAMES
from everface.train.evaluate.metrics import correlation
from everface.train.synthetic.characters import mouth_box

MOST_CLIPS = 400  # to fit the probe on
RIDGE = 1e-2  # of the mean square of the inputs


class Reward:
    """Fitted once, then asked for every rollout."""

    def __init__(self, clips: Clips, motion: float) -> None:
        self.motion = motion
        top, bottom, left, right = (round(v / 8) for v in mouth_box(8 * clips.latents_N16Thw.shape[-2]))
        self.box = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
        z = clips.latents_N16Thw[:MOST_CLIPS, :, STILL_LATENTS:].float()
        x_RE = torch.cat([self._cells(one) for one in z])
        y_R = torch.cat([loudness(f.float()) for f in clips.features_NLCF[:MOST_CLIPS]])
        gram = x_RE.T @ x_RE
        self.probe_E = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)), x_RE.T @ y_R)
        self.spread = z.std(dim=2).mean().item()

    def __call__(self, x0_16Fhw: torch.Tensor, features_LCT: torch.Tensor) -> float:
        """R of one rollout, in -1 - w .. 1 + w."""
        x0 = x0_16Fhw.float().cpu()
        lips = correlation(self._cells(x0) @ self.probe_E, loudness(features_LCT.float().cpu()))
        return lips + self.motion * min(1.0, x0.std(dim=1).mean().item() / self.spread)

    def _cells(self, z_16Fhw: torch.Tensor) -> torch.Tensor:
        """[F, cells * 16 + 1]: the mouth as it differs from its mean over the clip, and a constant."""
        cells = z_16Fhw[:, :, self.box[0], self.box[1]].permute(1, 0, 2, 3).flatten(1)
        return torch.cat([cells - cells.mean(0), torch.ones(len(cells), 1)], dim=1)


def loudness(features_LCT: torch.Tensor) -> torch.Tensor:
    """Of each latent frame [F], against its mean over the clip, from the 5 past video frames and 4 a latent frame."""
    frames = features_LCT.mean(dim=(0, 1))[PAST:]
    level = frames.unflatten(0, (-1, VIDEO_FRAMES)).mean(1)
    return level - level.mean()
