"""A warp of decoded frames by a flow that is a sum of fixed fields: how a head moves (networks/video/head_warp.py).

Contract
    flow[t] = sum over k of motion[k, t] * fields[k];   y[:, t] = x[:, t] sampled at (pixel - flow[t])
    x [3, T, H, W] floating, any strides, fields [K, H, W, 2] (right, down) in halves of the frame's width and height, motion [K, T]
    -> y [3, T, H, W] float32. Bicubic with a = -0.75, as torch's grid_sample; beyond the border its pixels go on.
Cost
    memory: one read, one write in float32. 12 frames of 256x256: 4.7 MB in bfloat16, 9.4 MB, and 4.2 MB of fields.
On a CPU
    csrc/cpu/frames.cc where everface._native is built: a pixel's three colors are one vector, four pixels of a row one load, where
    torch gathers every tap of every color by itself.
On a GPU
    The reference. Not measured there.
Source
    Keys 1981 (doi 10.1109/TASSP.1981.1163711).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.cpu import native_cpu, runs_native, video_operand


def warp_frames_reference(video_3THW: Tensor, fields_KHW2: Tensor, motion_KT: Tensor) -> Tensor:
    """Plain torch."""
    height, width = video_3THW.shape[-2:]
    sides = ((torch.arange(side, device=video_3THW.device) + 0.5) / side * 2 - 1 for side in (height, width))
    y_HW, x_HW = torch.meshgrid(*sides, indexing="ij")
    flow_THW2 = torch.einsum("kt,khwc->thwc", motion_KT, fields_KHW2)
    place_THW2 = torch.stack([x_HW, y_HW], -1) - flow_THW2
    frames_T3HW = video_3THW.transpose(0, 1).float()
    return F.grid_sample(frames_T3HW, place_THW2, mode="bicubic", padding_mode="border", align_corners=False).transpose(0, 1)


def warp_frames(video_3THW: Tensor, fields_KHW2: Tensor, motion_KT: Tensor) -> Tensor:
    """The op. Returns [3, T, H, W] float32; fields and motion are float32 too."""
    if not runs_native(video_3THW, fields_KHW2, motion_KT):
        return warp_frames_reference(video_3THW, fields_KHW2, motion_KT)
    fields_KHW2, motion_KT = fields_KHW2.contiguous(), motion_KT.contiguous()
    warped_THW3 = torch.empty((*video_3THW.shape[1:], 3))
    addresses = fields_KHW2.data_ptr(), motion_KT.data_ptr(), len(motion_KT), warped_THW3.data_ptr()
    native_cpu().warp_frames(*video_operand(video_3THW), *addresses, torch.get_num_threads())
    return warped_THW3.permute(3, 0, 1, 2)
