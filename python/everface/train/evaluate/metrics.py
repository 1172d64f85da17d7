"""What the judge measures on a clip. Frames are rgb_T3HW float32 in -1..1 at 25 per second; every figure is a plain float.

Correlation alone rewards blur, so it never stands without amplitude, sharpness, flicker and the wrong sound beside it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.train.synthetic import characters

BLOCK_FRAMES, LATENT_FRAMES = 12, 4
REACH = 5  # frames of lag that are searched, each way
FIT_AT_ONCE = 8  # frames whose graph through the renderer is held together


def as_rgb(frames_THW3: Tensor) -> Tensor:
    """uint8 video frames to rgb_T3HW in -1..1."""
    return frames_THW3.permute(0, 3, 1, 2).float() / 127.5 - 1


def as_frames(rgb_T3HW: Tensor) -> Tensor:
    """rgb_T3HW in -1..1 to uint8 video frames_THW3."""
    return ((rgb_T3HW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def correlation(a_T: Tensor, b_T: Tensor) -> float:
    """Pearson correlation; 0 where either curve stands still (a frozen face earns nothing)."""
    a_T, b_T = a_T.double() - a_T.double().mean(), b_T.double() - b_T.double().mean()
    norm = a_T.norm() * b_T.norm()
    if min(a_T.norm(), b_T.norm()) < 1e-3 * math.sqrt(len(a_T)):
        return 0.0
    return (a_T @ b_T / norm).item()


def lag(read_T: Tensor, truth_T: Tensor) -> int:
    """The shift in frames, within `REACH`, at which the curves agree best; positive means that the mouth comes late."""
    T = len(truth_T)

    def agree(shift: int) -> float:
        return correlation(read_T[max(shift, 0) : T + min(shift, 0)], truth_T[max(-shift, 0) : T - max(shift, 0)])

    return max(sorted(range(-REACH, REACH + 1), key=abs), key=agree)


def amplitude_ratio(read_T: Tensor, truth_T: Tensor) -> float:
    """How far the mouth travels against how far it should: ratio of standard deviations."""
    return (read_T.std() / truth_T.std().clamp(min=1e-6)).item()


def sharpness(rgb_T3HW: Tensor) -> float:
    """Mean absolute Laplacian of the grey picture. Use it as a ratio to the truth; noise raises it too, so see flicker."""
    grey = rgb_T3HW.mean(1, keepdim=True)
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(grey, kernel).abs().mean().item()


def frame_change(rgb_T3HW: Tensor) -> Tensor:
    """Mean absolute change from each frame to the next. Entry i is frame i + 1 against frame i, so there are T - 1."""
    return (rgb_T3HW[1:] - rgb_T3HW[:-1]).abs().mean((1, 2, 3))


def edge_flicker(rgb_T3HW: Tensor, block_frames: int = BLOCK_FRAMES) -> tuple[float, float]:
    """Change at block edges (every `block_frames`) and at other latent edges (every 4), over the change inside a latent frame.

    1 is a seamless video. A video that does not change inside has no ratio: inf where its edges move, 1 where nothing does.
    """
    change = frame_change(rgb_T3HW)
    at = torch.arange(1, len(rgb_T3HW))
    block, latent = at % block_frames == 0, (at % LATENT_FRAMES == 0) & (at % block_frames != 0)
    inside = change[~block & ~latent].mean().item()

    def ratio(edge: float) -> float:
        if inside > 1e-7:
            return edge / inside
        return math.inf if edge > 1e-7 else 1.0

    return tuple(ratio(change[edges].mean().item()) if edges.any() else math.nan for edges in (block, latent))  # type: ignore[return-value]


def motion_energy(rgb_T3HW: Tensor) -> float:
    """Mean absolute change per frame, over the whole clip."""
    return frame_change(rgb_T3HW).mean().item()


def count_blinks(blink_T: Tensor) -> int:
    """How often the lids pass from open (below 0.35) to shut (above 0.65), with hysteresis so that flicker does not count."""
    count, shut = 0, False
    for value in blink_T.tolist():
        if not shut and value > 0.65:
            count, shut = count + 1, True
        elif shut and value < 0.35:
            shut = False
    return count


def crop(rgb: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """[..., H, W] inside (top, bottom, left, right)."""
    return rgb[..., box[0] : box[1], box[2] : box[3]]


def psnr(a_T3HW: Tensor, b_T3HW: Tensor) -> float:
    """Peak signal to noise ratio in dB, peak 2 (the range -1..1), over the clip; at most 100."""
    mse = (a_T3HW - b_T3HW).square().mean().item()
    return min(100.0, 10 * math.log10(4 / max(mse, 1e-12)))


def fit_pose(
    id_P: Tensor, rgb_N3HW: Tensor, start_NA: Tensor, rounds: tuple[tuple[int, int], ...] = ((32, 40), (64, 30), (128, 25))
) -> Tensor:
    """The pose that explains each frame best with the person fixed: Adam through the renderer, coarse to fine (anim_NA).

    start_NA: a first guess (the reader's opening, width and blink). rounds: (picture size, steps), none above the frame's size.
    """
    size = rgb_N3HW.shape[-1]
    id_NP = id_P[None].expand(len(rgb_N3HW), -1)
    anim_NA = start_NA.clone()
    step = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.10, 0.10, 0.12])  # what counts as a unit of each scalar
    for pixels, steps in rounds:
        if pixels > size:
            continue
        goal = F.interpolate(rgb_N3HW, (pixels, pixels), mode="area") if pixels < size else rgb_N3HW
        free_NA = (anim_NA.detach() / step).requires_grad_()
        optimiser = torch.optim.Adam([free_NA], lr=0.06 * 32 / pixels)
        for _ in range(steps):
            optimiser.zero_grad()
            (characters.render(id_NP, free_NA * step, pixels) - goal).square().mean((1, 2, 3)).sum().backward()
            optimiser.step()
            with torch.no_grad():
                free_NA[:, :4].clamp_(0, 1)
        anim_NA = free_NA.detach() * step
    return anim_NA


def fit_psnr(id_P: Tensor, rgb_N3HW: Tensor, start_NA: Tensor) -> tuple[float, float]:
    """Is it still the same person? PSNR in dB against that person drawn in the pose that fits best, mean over frames: of the whole
    frame, and of the worse eye. One pose has one pair of eyes: none explains one that is smeared, or open beside a shut one."""
    parts = zip(rgb_N3HW.split(FIT_AT_ONCE), start_NA.split(FIT_AT_ONCE), strict=True)
    anim_NA = torch.cat([fit_pose(id_P, *part) for part in parts])
    with torch.no_grad():
        drawn_N3HW = characters.render(id_P[None], anim_NA, rgb_N3HW.shape[-1])
    top, bottom, left, right = characters.eyes_box(rgb_N3HW.shape[-1])
    middle = (left + right) // 2
    whole = eyes = 0.0
    for drawn, frame in zip(drawn_N3HW[:, None], rgb_N3HW[:, None], strict=True):
        whole += psnr(drawn, frame)
        eyes += min(psnr(crop(drawn, eye), crop(frame, eye)) for eye in ((top, bottom, left, middle), (top, bottom, middle, right)))
    return whole / len(rgb_N3HW), eyes / len(rgb_N3HW)
