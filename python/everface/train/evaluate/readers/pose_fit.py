"""Identity of a generated face: how well its character can be fitted to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.train.evaluate import metrics
from everface.train.synthetic.characters import eyes_box, render

FIT_BATCH = 8  # frames whose graph through the renderer is in memory at once


def fit_pose(
    id_P: Tensor, rgb_N3HW: Tensor, start_NA: Tensor, rounds: tuple[tuple[int, int], ...] = ((32, 40), (64, 30), (128, 25))
) -> Tensor:
    """The pose (anim_NA) that fits each frame best with the identity fixed: Adam through the renderer, coarse to fine.

    start_NA: a first guess (the lip reader's opening, width and blink). rounds: (image size, steps); sizes above the frame's are skipped.
    """
    size = rgb_N3HW.shape[-1]
    id_NP = id_P[None].expand(len(rgb_N3HW), -1)
    anim_NA = start_NA.clone()
    step = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.10, 0.10, 0.12])  # the unit of each scalar
    for pixels, steps in rounds:
        if pixels > size:
            continue
        goal = F.interpolate(rgb_N3HW, (pixels, pixels), mode="area") if pixels < size else rgb_N3HW
        free_NA = (anim_NA.detach() / step).requires_grad_()
        optimizer = torch.optim.Adam([free_NA], lr=0.06 * 32 / pixels)
        for _ in range(steps):
            optimizer.zero_grad()
            (render(id_NP, free_NA * step, pixels) - goal).square().mean((1, 2, 3)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                free_NA[:, :4].clamp_(0, 1)
        anim_NA = free_NA.detach() * step
    return anim_NA


def fit_psnr(id_P: Tensor, rgb_N3HW: Tensor, start_NA: Tensor) -> tuple[float, float]:
    """Identity: PSNR in dB against the character rendered in the pose that fits best, mean over frames, of the whole frame and of the worse
    eye. A pose has one pair of eyes, so none fits an eye that is blurred, or open beside a shut one."""
    parts = zip(rgb_N3HW.split(FIT_BATCH), start_NA.split(FIT_BATCH), strict=True)
    anim_NA = torch.cat([fit_pose(id_P, *part) for part in parts])
    with torch.no_grad():
        drawn_N3HW = render(id_P[None], anim_NA, rgb_N3HW.shape[-1])
    top, bottom, left, right = eyes_box(rgb_N3HW.shape[-1])
    middle = (left + right) // 2
    whole = eyes = 0.0
    for drawn, frame in zip(drawn_N3HW[:, None], rgb_N3HW[:, None], strict=True):
        whole += metrics.psnr(drawn, frame)
        eyes += min(metrics.psnr(metrics.crop(drawn, eye), metrics.crop(frame, eye)) for eye in ((top, bottom, left, middle), (top, bottom, middle, right)))
    return whole / len(rgb_N3HW), eyes / len(rgb_N3HW)
