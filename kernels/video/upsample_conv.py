"""Nearest upsampling by 2 and a 3x3 convolution, fused: the upsampled frames are never written.

Contract
    Each pixel of x holds `side` frames of CI channels side by side, the earlier first, as a convolution in time outputs them.
    u = those frames in order, each value of a pixel four times (nearest);   y = bias + conv2d(u, W), zeros beyond the edges
    x [B, side * CI, T, H, W], W [CO, CI, 3, 3], bias [CO] -> y [B, CO, side * T, 2 H, 2 W]; one floating dtype, sums in float32.
    Shapes are channels first, memory is channels last; on a GPU other layouts are copied.
Cost
    18 CI CO flops a pixel of y: 2.3 TFLOP of a block's 27.5. On a GPU x and y are moved once; torch writes u and reads it again, 1.9 GB a
    block in bfloat16 at 704x384.
Kernel
    That of causal_conv3d: frame order and upsampling are index arithmetic of its loads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.video.causal_conv3d import channels_last, compile_spec, cpu_dtypes, launch, runs_kernel
from everface.kernels.video.packed_conv import fold_upsample, packed_upsample, takes

# --- reference


def upsample_conv_reference(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, side: int) -> Tensor:
    """Plain torch; differentiable."""
    b, c, t, h, w = x_BCTHW.shape
    x_BTFHWC = x_BCTHW.movedim(1, -1).unflatten(-1, (side, c // side)).movedim(4, 2)
    x_BTFHaWbC = x_BTFHWC[:, :, :, :, None, :, None].expand(-1, -1, -1, -1, 2, -1, 2, -1)
    x_NHWC = x_BTFHaWbC.reshape(b * t * side, 2 * h, 2 * w, c // side)  # order of frames and nearest in one copy
    y_NCHW = F.conv2d(x_NHWC.permute(0, 3, 1, 2), weight, bias, padding=1)
    return y_NCHW.permute(0, 2, 3, 1).unflatten(0, (b, -1)).permute(0, 4, 1, 2, 3)


def upsample_conv_folded(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, side: int) -> Tensor:
    """The CPU path: each of the four pixels of y over one of x is a convolution of 2x2 taps. Equal to rounding, not to the bit."""
    b, c, t, h, w = x_BCTHW.shape
    x_BTFHWC = x_BCTHW.movedim(1, -1).unflatten(-1, (side, c // side)).movedim(4, 2)
    x_NHWC = F.pad(x_BTFHWC.reshape(b * t * side, h, w, c // side), (0, 0, 1, 1, 1, 1))
    folded = fold_upsample(weight).flatten(0, 1)
    folded = folded.contiguous(memory_format=torch.channels_last)
    four = F.conv2d(x_NHWC.permute(0, 3, 1, 2), folded, None if bias is None else bias.repeat(4)).permute(0, 2, 3, 1)
    four_NHWpqC = four.unflatten(-1, (2, 2, -1))  # over one pixel more than x has, on each axis
    y_NHpWqC = four.new_empty((b * t * side, h, 2, w, 2, weight.shape[0]))
    for p in range(2):
        for q in range(2):
            y_NHpWqC[:, :, p, :, q] = four_NHWpqC[:, p : p + h, q : q + w, p, q]
    return y_NHpWqC.view(b, t * side, 2 * h, 2 * w, -1).movedim(-1, 1)


# --- op


def upsample_conv(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, side: int, packed: Tensor | None = None) -> Tensor:
    """The op. `packed`: pack_upsample(weight), for a CPU that has a use for it."""
    if packed is not None and takes(x_BCTHW, None, None):
        return packed_upsample(x_BCTHW, packed, bias, side, weight)
    if not runs_kernel(x_BCTHW, weight, bias):
        learns = torch.is_grad_enabled() and (x_BCTHW.requires_grad or weight.requires_grad)
        folds = x_BCTHW.device.type == "cpu" and x_BCTHW.dtype in cpu_dtypes() and not learns
        return (upsample_conv_folded if folds else upsample_conv_reference)(x_BCTHW, weight, bias, side)
    x_BTHWC = channels_last(x_BCTHW)
    b, t, h, w, _ = x_BTHWC.shape
    y_BTHWC = x_BTHWC.new_empty((b, side * t, 2 * h, 2 * w, weight.shape[0]))
    launch(x_BTHWC, None, channels_last(weight[:, :, None]), bias, None, side, 2, y_BTHWC)
    return y_BTHWC.movedim(-1, 1)


COMPILE = [compile_spec(arch, "upsample_conv", "bf16", c, c // 2, 1, 3, up=2, given="") for c in (384, 192) for arch in (80, 90, 100)]
