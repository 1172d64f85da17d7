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

TAPS = range(-2, 4)  # source pixels about a place


def warp_frames_reference(video_3THW: Tensor, fields_KHW2: Tensor, motion_KT: Tensor) -> Tensor:
    """Plain torch."""
    height, width = video_3THW.shape[2:]
    size_2 = torch.tensor([width, height], device=video_3THW.device)
    y_HW, x_HW = torch.meshgrid(*(torch.arange(side, device=video_3THW.device) for side in (height, width)), indexing="ij")
    flow_THW2 = torch.einsum("kt,khwc->thwc", motion_KT, fields_KHW2) * (size_2 / 2)
    place_THW2 = (torch.stack([x_HW, y_HW], -1) - flow_THW2).nan_to_num(nan=-1e9).clamp(-size_2, 2 * size_2)
    whole_THW2 = place_THW2.floor()
    across_6THW, down_6THW = lanczos(place_THW2 - whole_THW2).permute(3, 4, 0, 1, 2)
    frames_T3HW = video_3THW.transpose(0, 1).float()
    warped_T3HW = torch.zeros_like(frames_T3HW)
    for right, across_THW in zip(TAPS, across_6THW, strict=True):
        for lower, down_THW in zip(TAPS, down_6THW, strict=True):
            at_THW2 = (whole_THW2 + torch.tensor([right, lower], device=video_3THW.device) + 0.5) / size_2 * 2 - 1
            pixels_T3HW = F.grid_sample(frames_T3HW, at_THW2, mode="nearest", padding_mode="border", align_corners=False)
            warped_T3HW.addcmul_((across_THW * down_THW)[:, None], pixels_T3HW)
    return warped_T3HW.transpose(0, 1)


def lanczos(part: Tensor) -> Tensor:
    """Weights [..., 6] of the source pixels -2 to 3 of a place that is so far, 0 to 1, to the right of pixel 0."""
    distance = part[..., None].double() - torch.arange(TAPS[0], TAPS[-1] + 1, device=part.device)
    weights = torch.sinc(distance) * torch.sinc(distance / 3)
    weights = torch.where(part[..., None] == 0, (distance == 0).double(), weights)  # sinc of a whole number is not quite zero
    return (weights / weights.sum(-1, keepdim=True)).float()


def warp_frames(video_3THW: Tensor, fields_KHW2: Tensor, motion_KT: Tensor) -> Tensor:
    """The op. Returns [3, T, H, W] float32; fields and motion are float32 too."""
    if not runs_native(video_3THW, fields_KHW2, motion_KT):
        return warp_frames_reference(video_3THW, fields_KHW2, motion_KT)
    fields_KHW2, motion_KT = fields_KHW2.contiguous(), motion_KT.contiguous()
    warped_THW3 = torch.empty((*video_3THW.shape[1:], 3))
    addresses = fields_KHW2.data_ptr(), motion_KT.data_ptr(), len(motion_KT), warped_THW3.data_ptr()
    native_cpu().warp_frames(*video_operand(video_3THW), *addresses, torch.get_num_threads())
    return warped_THW3.permute(3, 0, 1, 2)
