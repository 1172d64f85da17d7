"""How far the frames of one video are from those of another: PSNR and SSIM.

    psnr = 10 log10(255^2 / mean (I - J)^2), over all pixels and channels; None where nothing differs
    ssim = mean of (2 m_I m_J + c1)(2 s_IJ + c2) / ((m_I^2 + m_J^2 + c1)(s_I^2 + s_J^2 + c2)), c1 = (0.01 * 255)^2, c2 = (0.03 * 255)^2

SSIM (Wang et al. 2004) is of gray images, with means, variances and covariance under a Gaussian window of 11 x 11 with deviation 1.5, where it
fits into the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.errors import BadInput
from everface.genbench.clips.systems import raw_path
from everface.media.video import probe_video

WINDOW, DEVIATION = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
GRAY = (0.299, 0.587, 0.114)  # shares of red, green, blue (ITU-R BT.601)
AT_ONCE = 32  # frames


@dataclass(frozen=True)
class FrameDistances:
    """Of each frame: mean squared error in squared gray levels [T], and SSIM [T]."""

    mse_T: Tensor
    ssim_T: Tensor


def psnr(mse: float) -> float | None:
    """In dB; None where nothing differs."""
    return 10 * math.log10(255**2 / mse) if mse > 0 else None


def compare_frames(got_THW3: Tensor, exact_THW3: Tensor) -> FrameDistances:
    """Two videos of one size, uint8. Raises BadInput if they differ in length or size."""
    if got_THW3.shape != exact_THW3.shape:
        shapes = " and ".join("{}x{}x{}".format(*x.shape[:3]) for x in (got_THW3, exact_THW3))
        raise BadInput(f"videos of {shapes} (frames, height, width) cannot be compared: make both of the same audio and size")
    mse, similar = [], []
    for got, exact in zip(got_THW3.split(AT_ONCE), exact_THW3.split(AT_ONCE)):
        mse.append((got.float() - exact.float()).square().mean((1, 2, 3)))
        similar.append(ssim(got, exact))
    return FrameDistances(torch.cat(mse), torch.cat(similar))


def ssim(got_THW3: Tensor, exact_THW3: Tensor) -> Tensor:
    """SSIM of each frame [T]."""
    x, y = (frames.float() @ frames.new_tensor(GRAY, dtype=torch.float32) for frames in (got_THW3, exact_THW3))
    mean_x, mean_y, xx, yy, xy = (_blur(z) for z in (x, y, x * x, y * y, x * y))
    similar = (2 * mean_x * mean_y + C1) * (2 * (xy - mean_x * mean_y) + C2)
    return (similar / ((mean_x**2 + mean_y**2 + C1) * (xx - mean_x**2 + yy - mean_y**2 + C2))).mean((1, 2))


def _blur(images_THW: Tensor) -> Tensor:
    """Means under the window, where it fits."""
    g = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * DEVIATION**2)).double()
    g = g / g.sum()
    rows = F.conv2d(images_THW[:, None].double(), g.view(1, 1, 1, -1))
    return F.conv2d(rows, g.view(1, 1, -1, 1))[:, 0]


def read_raw(video: Path) -> Tensor:
    """The frames that everface kept beside a clip, uint8 [T, H, W, 3]. Raises BadInput."""
    info, path = probe_video(video), raw_path(video)
    if not path.is_file():
        raise BadInput(f"there is no {path}, the frames that {video.name} was made of: delete {video.parent.parent} and run again")
    return torch.from_numpy(np.fromfile(path, np.uint8).reshape(-1, info.height, info.width, 3))
