"""Moves the head of decoded frames, and the lips: a warp by the flow that small turns and shifts of a head cause.

The head is a dome in front of the plane through the ears, framed as the training's people are, and turns about its neck. A flow is linear in the
motion, so it is a sum of eight fields; around the head they fade out, so that background and shoulders stay. For turns of a few degrees only. Two
more make the mouth wider and open it further, of which the transformer draws too little (decision 17).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from everface.kernels.video.warp_frames import warp_frames

# In halves of the image, x right and y down, measured on rendered people: lips at (0, 0.32) move by 0.83 a radian of pitch or yaw, 0.07 a unit of shift.
NECK_Y = 0.44  # where the head turns
DOME_X, DOME_Y, DOME_CENTER_Y = 0.52, 0.72, 0.05
EARS, DOME = 0.2, 0.74  # depth before the axis of the turn: of the ears, and of the dome before them
HEAD_X, HEAD_Y, HEAD_CENTER_Y = 0.62, 0.80, -0.08  # what moves as a whole
FADED = 1.55  # times that size, where nothing moves any more
SHOULDERS = (0.45, 0.9)  # from where to where the head's motion becomes the body's
MOUTH_X, MOUTH_Y = 0.25, 0.15  # from the mouth's middle, within which lips move: a Gaussian's
PLACES = 64  # steps of half an image in which that middle is told, so that fields can be kept
UNIT, NEARER = 0.07, 0.016  # of the image's half width a unit of shift; growth a unit nearer


def warp_head(video_3THW: Tensor, head_KT: Tensor, mouth: tuple[float, float] | None = None) -> Tensor:
    """Frames [3, T, H, W] with the head moved by head_KT, values of `motion.HEAD`; float32. Where nothing moves a frame stays as it is.
    mouth: its middle (right, down) in halves of the image; None where it is not known: lips are left as they are."""
    place = None if mouth is None else (round(PLACES * mouth[0]), round(PLACES * mouth[1]))
    fields_KHW2 = flow_fields(*video_3THW.shape[-2:], video_3THW.device, place)
    return warp_frames(video_3THW, fields_KHW2, head_KT[: len(fields_KHW2)].to(fields_KHW2))


@lru_cache(maxsize=16)
def flow_fields(height: int, width: int, device: torch.device, mouth: tuple[int, int] | None = None) -> Tensor:
    """[8, H, W, 2] in halves of the image; [10, ...] where the mouth's middle is given, in steps of half the image over PLACES. They are kept, so they must not
    be changed."""
    y_HW, x_HW = torch.meshgrid(*((torch.arange(side) + 0.5) / side * 2 - 1 for side in (height, width)), indexing="ij")
    none = torch.zeros(height, width)
    if mouth is not None:
        from_x_HW, from_y_HW = x_HW - mouth[0] / PLACES, y_HW - mouth[1] / PLACES
        near = torch.exp(-(from_x_HW / MOUTH_X).square() - (from_y_HW / MOUTH_Y).square())
        lips = torch.stack([near * from_x_HW, none], -1), torch.stack([none, near * from_y_HW], -1)
        return torch.cat([flow_fields(height, width, device), torch.stack(lips).to(device)])  # the head's are the same for all
    inside = (1 - (x_HW / DOME_X).square() - ((y_HW - DOME_CENTER_Y) / DOME_Y).square()).clamp(min=0)
    depth = EARS + DOME * inside
    far = ((x_HW / HEAD_X).square() + ((y_HW - HEAD_CENTER_Y) / HEAD_Y).square()).sqrt()
    body = smooth((y_HW - SHOULDERS[0]) / (SHOULDERS[1] - SHOULDERS[0]))
    head = smooth((FADED - far) / (FADED - 1)) * (1 - body)
    flows = (
        (none, head * depth), (head * depth, none), (head * (y_HW - NECK_Y), -head * x_HW), (head * UNIT, none), (none, -head * UNIT),
        (head * NEARER * x_HW, head * NEARER * y_HW), (body * UNIT, none), (none, -body * UNIT),
    )  # fmt: skip
    return torch.stack([torch.stack(flow, -1) for flow in flows]).to(device)


def smooth(x: Tensor) -> Tensor:
    """From 0 at 0 to 1 at 1, without a kink."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
