"""Draws shapes of a character into a batch of images: coordinates, coverage, bounding boxes.

Every shape is a signed distance field d (image units: the image spans -1..1, y down) with the coverage clamp(1/2 - d / pixel, 0, 1), so
edges are anti-aliased at any size, and gradients reach identity and animation alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from everface.train.synthetic.parameters import ANIMATION, COLORS, SHAPES

NECK_Y, MIDDLE_Y = 0.7, 0.1  # centers of the sway (base of the neck) and of the resting tilt and scale (middle of the face)

Part = Callable[["Rasterizer", Tensor, Tensor, Tensor], Tensor]
"""(rasterizer, rgb, x, y) of a bounding box -> its new rgb."""


class Rasterizer:
    """One batch of images. Parameters are N111 (shapes) and N311 (colors); coordinates are N1HW: u, v of the image, x, y of the head, bx, by
    of the body."""

    def __init__(self, id_NP: Tensor, anim_NA: Tensor, size: int) -> None:
        n_color = len(COLORS)
        self.color: dict[str, Tensor] = dict(zip(COLORS, id_NP[:, : 3 * n_color].reshape(-1, n_color, 3, 1, 1).unbind(1)))
        self.shape: dict[str, Tensor] = dict(zip(SHAPES, id_NP[:, 3 * n_color :, None, None, None].unbind(1)))
        self.pose: dict[str, Tensor] = dict(zip(ANIMATION, anim_NA[:, :, None, None, None].unbind(1)))
        s, pose = self.shape, self.pose
        self.size, self.differentiable = size, torch.is_grad_enabled() and id_NP.requires_grad
        axis = ((torch.arange(size, device=id_NP.device) + 0.5) * 2 - size) / size
        self.v, self.u = axis[None, None, :, None], axis[None, None, None, :]
        self.pixel = (2.0 / size) / s["rest_scale"]  # width of one, in units of the head
        # head = R(tilt) (R(rot) (p - shift - neck) + neck - middle) / scale + middle, one affine map
        angle = pose["rot"] + s["rest_tilt"]
        self.cos, self.sin = torch.cos(angle) / s["rest_scale"], torch.sin(angle) / s["rest_scale"]
        self.shift_x, self.shift_y = s["rest_dx"] + pose["dx"], s["rest_dy"] + pose["dy"] + NECK_Y
        arm = (NECK_Y - MIDDLE_Y) / s["rest_scale"]
        self.arm_x, self.arm_y = arm * torch.sin(s["rest_tilt"]), arm * torch.cos(s["rest_tilt"]) + MIDDLE_Y
        u, v = self.u - self.shift_x, self.v - self.shift_y
        self.x, self.y = self.cos * u + self.sin * v + self.arm_x, self.cos * v - self.sin * u + self.arm_y
        # the body follows the sway by a third
        self.body_x, self.body_y = s["rest_dx"] + pose["dx"] / 3, s["rest_dy"] + pose["dy"] / 3 + NECK_Y
        self.bx = (self.u - self.body_x) / s["rest_scale"]
        self.by = (self.v - self.body_y) / s["rest_scale"] + NECK_Y
        # the inverse maps, for bounding boxes
        scale = s["rest_scale"].detach()
        cos, sin, none = self.cos.detach() * scale.square(), self.sin.detach() * scale.square(), torch.zeros_like(scale)
        head = [cos, -sin, self.shift_x - cos * self.arm_x + sin * self.arm_y]
        head += [sin, cos, self.shift_y - sin * self.arm_x - cos * self.arm_y]
        body = [scale, none, self.body_x, none, scale, self.body_y - scale * NECK_Y]
        self.from_head_N23, self.from_body_N23 = (torch.cat(m, 1).detach().view(-1, 2, 3) for m in (head, body))

    def has(self, *names: str) -> bool:
        """Whether a character of the batch has any of these parts; always true when gradients with respect to identity are wanted."""
        return self.differentiable or any(bool(self.shape[name].any()) for name in names)

    def cover(self, d: Tensor, soft: float = 1.0) -> Tensor:
        """Coverage 0..1 of a shape whose edge is `soft` pixels wide."""
        return (0.5 - d * (1.0 / (self.pixel * soft))).clamp(0, 1)

    def rim(self, d: Tensor, width: float = 0.042) -> Tensor | float:
        """Factor on a shape's color that draws its outline, inside its edge: 1 without ink."""
        if not self.has("ink"):
            return 1.0
        return 1 - 0.74 * self.shape["ink"] * (0.5 + (d + width) / self.pixel).clamp(0, 1)

    def box(self, rect: tuple[float, float, float, float], body: bool = False) -> tuple[slice, slice]:
        """Rows and columns that hold the rectangle (left, right, top, bottom) of the head or the body for the whole batch."""
        left, right, top, bottom = rect
        corners = torch.tensor([[left, left, right, right], [top, bottom, top, bottom], [1.0, 1.0, 1.0, 1.0]])
        uv_N24 = (self.from_body_N23 if body else self.from_head_N23) @ corners.to(self.u.device)
        (left, top), (right, bottom) = uv_N24.amin((0, 2)).tolist(), uv_N24.amax((0, 2)).tolist()
        return self._pixels(top, bottom), self._pixels(left, right)

    def _pixels(self, lo: float, hi: float) -> slice:
        """The pixels of one axis, with one to spare at each end."""
        first = min(max(int((lo + 1) * self.size / 2) - 1, 0), self.size)
        return slice(first, min(max(int((hi + 1) * self.size / 2) + 2, first), self.size))

    def paint(self, rgb: Tensor, rect: tuple[float, float, float, float], part: Part, body: bool = False) -> None:
        """Paint a part over rgb_N3HW, in place, inside the box of its rectangle only."""
        rows, cols = self.box(rect, body)
        x, y = (self.bx, self.by) if body else (self.x, self.y)
        # bx and by vary along one axis each
        x, y = (t[..., rows if t.shape[2] > 1 else slice(None), cols if t.shape[3] > 1 else slice(None)] for t in (x, y))
        rgb[..., rows, cols] = part(self, rgb[..., rows, cols].clone(), x, y)


def ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """First-order distance to an ellipse: f / |grad f| with f = (x/rx)^2 + (y/ry)^2 - 1."""
    a, b = x / rx, y / ry
    f = a * a + b * b - 1
    return 0.5 * f * torch.rsqrt((a / rx).square() + (b / ry).square() + 1e-6)


def bump(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """A soft spot (1 - r^2)^2 that ends at the ellipse: unlike a Gaussian it leaves no edge where a box cuts it."""
    return (1 - (x / rx).square() - (y / ry).square()).clamp(min=0).square()


def tint(like: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    """A constant color as 1311 on the device of `like`."""
    return torch.tensor(rgb, device=like.device).view(1, 3, 1, 1)
