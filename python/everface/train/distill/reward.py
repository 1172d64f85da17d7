"""How well a rollout's lips follow the audio and how lively it is, computed from its latents without decoder or network.

    R = correlation(probe(mouth cells), loudness) + w * min(1, standard deviation in time over the truth's)

The probe is a ridge regression from the cells of the mouth to the loudness, fitted in closed form on true clips. Loudness is the mean of a
log-mel feature, so this reward needs the log-mel front end.
"""

from __future__ import annotations

import torch

from everface.core.config import LATENT_FRAMES
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.train.data.clips import STILL_LATENTS, Clips
from everface.train.engine.statistics import correlation
from everface.train.synthetic.characters import mouth_box

MAX_CLIPS = 400  # that the probe is fitted on
RIDGE = 1e-2  # of the mean square of the inputs


class Reward:
    """Fitted once, then called for every rollout. `motion`: w above."""

    def __init__(self, clips: Clips, motion: float) -> None:
        self.motion = motion
        top, bottom, left, right = (round(v / 32) for v in mouth_box(32 * clips.latents_N16Thw.shape[-2]))
        self.box = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
        z = clips.latents_N16Thw[:MAX_CLIPS, :, STILL_LATENTS:].float()
        x_RE = torch.cat([self._cells(one) for one in z])
        y_R = torch.cat([loudness(f.float()) for f in clips.features_NLCF[:MAX_CLIPS]])
        gram = x_RE.T @ x_RE
        self.probe_E = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)), x_RE.T @ y_R)
        self.true_std = z.std(dim=2).mean().item()

    def __call__(self, x0_16Fhw: torch.Tensor, features_LCT: torch.Tensor) -> float:
        """R of one rollout, in -1 - w .. 1 + w."""
        x0 = x0_16Fhw.float().cpu()
        lips = correlation(self._cells(x0) @ self.probe_E, loudness(features_LCT.float().cpu()))
        return lips + self.motion * min(1.0, x0.std(dim=1).mean().item() / self.true_std)

    def _cells(self, z_16Fhw: torch.Tensor) -> torch.Tensor:
        """[F, cells * 16 + 1]: the mouth's difference from its mean over the clip, and a constant."""
        cells = z_16Fhw[:, :, self.box[0], self.box[1]].permute(1, 0, 2, 3).flatten(1)
        return torch.cat([cells - cells.mean(0), torch.ones(len(cells), 1)], dim=1)


def loudness(features_LCT: torch.Tensor) -> torch.Tensor:
    """Of each latent frame [F], relative to the mean of the clip; the features begin with 5 past video frames."""
    frames = features_LCT.mean(dim=(0, 1))[PAST_FRAMES:]
    level = frames.unflatten(0, (-1, LATENT_FRAMES)).mean(1)
    return level - level.mean()
