"""A warp of decoded frames by a flow that is a sum of fixed fields: how a head moves (networks/video/head_warp.py).

Contract
    flow[t] = sum over k of motion[k, t] * fields[k];   y[:, t] = x[:, t] sampled at (pixel - flow[t])
    x [3, T, H, W] floating, any strides, fields [K, H, W, 2] (right, down) in halves of the frame's width and height, motion [K, T]
    -> y [3, T, H, W] float32. By Lanczos' window of three pixels, its 36 weights' sum made one; beyond the border pixels go on. A pixel that
    does not move keeps its bits.
Cost
    memory: one read, one write in float32. 12 frames of 256x256: 4.7 MB in bfloat16, 9.4 MB, and 4.2 MB of fields.
On a CPU
    csrc/cpu/frames.cc where everface._native is built: a pixel's three colors are one vector, six pixels of a row two loads, where
    torch gathers every tap of every color by itself. Weights are read from a table of 512 places between two pixels, and interpolated.
On a GPU
    The reference. Not measured there.
Source
    Turkowski 1990, Filters for Common Resampling Tasks (Lanczos' window); docs/decisions/0018-sharper-warp.md says why not bicubic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.cpu import native_cpu, runs_native, video_operand


def warp_frames_reference(video_3THW: Tensor, fields_KHW2: Tensor, motion_KT: Tensor) -> Tensor:
    """Plain torch."""
    flow_THW2, frames_T3HW = torch.einsum("kt,khwc->thwc", motion_KT, fields_KHW2), video_3THW.transpose(0, 1).float()
    height, width = video_3THW.shape[2:]
    pixel_W, pixel_H = (torch.arange(side, device=video_3THW.device) for side in (width, height))
    right_6THW, across_6THW = taps_at(pixel_W - width / 2 * flow_THW2[..., 0], width)
    lower_6THW, down_6THW = taps_at(pixel_H[:, None] - height / 2 * flow_THW2[..., 1], height)
    warped_T3HW = torch.zeros_like(frames_T3HW)
    for right_THW, across_THW in zip(right_6THW, across_6THW, strict=True):
        for lower_THW, down_THW in zip(lower_6THW, down_6THW, strict=True):
            place_THW2 = torch.stack([right_THW, lower_THW], -1)
            pixels_T3HW = F.grid_sample(frames_T3HW, place_THW2, mode="nearest", padding_mode="border", align_corners=False)
            warped_T3HW.addcmul_((across_THW * down_THW)[:, None], pixels_T3HW)
    return warped_T3HW.transpose(0, 1)


def taps_at(at_THW: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The six source pixels about each place in pixels, in halves of the frame, and their weights, both [6, T, H, W]. A NaN is before the frame."""
    at_THW = at_THW.nan_to_num(nan=-side).clamp(-side, 2 * side)
    whole_THW = at_THW.floor()
    offset_6111 = torch.arange(-2, 4, device=at_THW.device)[:, None, None, None]
    distance = (at_THW - whole_THW).double() - offset_6111
    weights = torch.sinc(distance) * torch.sinc(distance / 3)
    weights = torch.where(at_THW == whole_THW, (offset_6111 == 0).double(), weights)  # sinc of a whole number is not quite zero
    return (whole_THW + offset_6111 + 0.5) / side * 2 - 1, (weights / weights.sum(0)).float()


def warp_frames(video_3THW: Tensor, fields_KHW2: Tensor, motion_KT: Tensor) -> Tensor:
    """The op. Returns [3, T, H, W] float32; fields and motion are float32 too."""
    if not runs_native(video_3THW, fields_KHW2, motion_KT):
        return warp_frames_reference(video_3THW, fields_KHW2, motion_KT)
    fields_KHW2, motion_KT = fields_KHW2.contiguous(), motion_KT.contiguous()
    warped_THW3 = torch.empty((*video_3THW.shape[1:], 3))
    addresses = fields_KHW2.data_ptr(), motion_KT.data_ptr(), len(motion_KT), warped_THW3.data_ptr()
    native_cpu().warp_frames(*video_operand(video_3THW), *addresses, torch.get_num_threads())
    return warped_THW3.permute(3, 0, 1, 2)
