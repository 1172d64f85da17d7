"""What the codec is trained for and measured by."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from everface.core.config import LATENT_FRAMES
from everface.train.synthetic.characters import mouth_box, region_weight

COLOR_SIDE = 8
STILL, MOVES, BLUR = 0.03, 0.1, 9  # deviations over time below which a pixel is still and from which it moves, means over squares of BLUR pixels


def pixel_weight(size: int) -> torch.Tensor:
    """Loss weight [H, W]: twice as much over mouth and eyes."""
    return region_weight(size, size, mouth=2.0, eyes=2.0)


def motion_weight(video_B3THW: torch.Tensor, gain: float) -> torch.Tensor:
    """Loss weight [B, 1, 1, H, W] with mean 1: pixels that change over the video, such as lips, teeth and lids, weigh up to 1 + `gain` times as
    much as those that stay. For heads that keep still."""
    deviation = F.avg_pool2d(video_B3THW.mean(1).std(1, unbiased=False)[:, None], BLUR, 1, BLUR // 2, count_include_pad=False)
    weight = 1 + gain * ((deviation - STILL) / (MOVES - STILL)).clamp(0, 1)
    return (weight / weight.mean())[:, :, None]


def codec_loss(
    out: torch.Tensor, video: torch.Tensor, weight: torch.Tensor, lead: int = 1, edge_weight: float = 3.0, color_weight: float = 0.0
) -> torch.Tensor:
    """L1 + 40 squared + 0.5 spatial gradients + 2 temporal differences, weighted. out, video [B, 3, T, H, W] in -1..1, weight
    [B, 1, T or 1, H, W].

    `color_weight` times L1 + 40 squared of the two opponent colors' mean over squares of COLOR_SIDE pixels come to it. Without, a codec of
    rendered people knew light from dark and blue from orange after 2,700 steps, but green from magenta not at all: the axis along which
    they differ least, and so the one with the smallest gradient.

    Temporal differences count `edge_weight` times where the frames of one latent follow those of another, which is where a codec flickers.
    `lead`: frames before the first whole latent.
    """
    error = out - video
    loss = (weight * (error.abs() + 40 * error.square())).mean()
    across, down = error.diff(dim=-1).abs(), error.diff(dim=-2).abs()
    loss = loss + 0.5 * ((weight[..., -across.shape[-1] :] * across).mean() + (weight[..., -down.shape[-2] :, :] * down).mean())
    if color_weight:
        opponent = opponent_colors(error)
        loss = loss + color_weight * (opponent.abs() + 40 * opponent.square()).mean()
    if video.shape[2] > 1:
        change = error.diff(dim=2).abs()
        edge = (torch.arange(change.shape[2], device=change.device) + 1 - lead) % LATENT_FRAMES == 0
        loss = loss + 2 * (weight[:, :, -change.shape[2] :] * change * (1 + (edge_weight - 1) * edge)[:, None, None]).mean()
    return loss


def opponent_colors(x_B3THW: torch.Tensor) -> torch.Tensor:
    """Green minus magenta, and blue minus orange [2, B, T, H / COLOR_SIDE, W / COLOR_SIDE], of the means of squares."""
    r, g, b = F.avg_pool3d(x_B3THW, (1, COLOR_SIDE, COLOR_SIDE)).unbind(1)
    return torch.stack([g - (r + b) / 2, b - (r + g / 2) / 1.5])


def reconstruction_quality(out_N3THW: torch.Tensor, video_N3THW: torch.Tensor) -> dict[str, float]:
    """PSNR in dB of whole frames, of the mouth and of `color`, the opponent colors' means over squares, and `edge`: how much the error
    changes between latents over how much inside one. The first frame must be the first of a latent."""
    error = out_N3THW.clamp(-1, 1) - video_N3THW
    top, bottom, left, right = mouth_box(error.shape[-1])

    def psnr(error: torch.Tensor) -> float:
        return round((10 * torch.log10(4 / error.square().flatten(1).mean(1))).mean().item(), 2)

    change = error.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))
    last = LATENT_FRAMES - 1
    edges = change[last::LATENT_FRAMES].mean() / change[[i for i in range(len(change)) if i % LATENT_FRAMES != last]].mean()
    return {"psnr": psnr(error), "mouth": psnr(error[..., top:bottom, left:right]), "color": psnr(opponent_colors(error).movedim(1, 0)), "edge": round(edges.item(), 2)}
