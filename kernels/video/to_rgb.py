"""The last step of a decoder: video in -1..1 to bytes, as RGB or as NV12, the formats of encoders and displays.

Contract
    RGB   trunc((clamp(x, -1, 1) + 1) * 127.5), truncated as upstream does
    NV12  BT.709, limited range (luma 16..235, chroma 16..240), of those RGB bytes:
          Y = 16 + 219/255 (0.2126 R + 0.7152 G + 0.0722 B), one a pixel
          U = 128 + 224/255 (B - L) / 1.8556,  V = 128 + 224/255 (R - L) / 1.5748,  L the weighted sum of Y, one each a 2x2 square, of its mean
          in integers with 16 fractional bits, nearest, so that every device gives the same bytes
    x [3, T, H, W] floating, any strides -> RGB [T, H, W, 3] uint8; NV12 [T, 3 H / 2, W] uint8: H rows of Y, then H / 2 rows of U V U V..
    Raises ValueError for NV12 of odd sides.
Cost
    memory: 19.5 MB read and 9.7 (RGB) or 4.9 (NV12) written for 12 frames of 704x384 in bfloat16.
Source
    ITU-R BT.709-6, items 3.2 to 3.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everface.kernels.cpu import native_cpu, runs_native, video_operand
from everface.kernels.launch import CompileSpec, Cost, Tiles, jit, metadata, runs_triton, select_tile, tile, tl

# --- reference


def to_rgb_reference(video_3THW: Tensor) -> Tensor:
    """Plain torch; also the path of a CPU without everface._native (csrc/cpu/frames.cc)."""
    return video_3THW.float().clamp(-1, 1).add(1).mul(127.5).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def to_nv12_reference(video_3THW: Tensor) -> Tensor:
    """Plain torch; also the CPU path."""
    rgb_THW3 = to_rgb_reference(video_3THW)
    frames, height, width, _ = rgb_THW3.shape
    r, g, b = rgb_THW3.int().unbind(-1)
    luma = (11966 * r + 40254 * g + 4064 * b + 1081344) >> 16
    squares = rgb_THW3.view(frames, height // 2, 2, width // 2, 2, 3).int().sum((2, 4))
    r, g, b = squares.unbind(-1)
    u = (-6596 * r - 22188 * g + 28784 * b + 33685504) >> 18
    v = (28784 * r - 26145 * g - 2639 * b + 33685504) >> 18
    chroma = torch.stack([u, v], -1).flatten(2)
    return torch.cat([luma, chroma], 1).to(torch.uint8)


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name: every value read once, every byte written once."""
    out = args["rgb_ptr"] if args["rgb_ptr"] is not None else args["nv12_ptr"]
    return Cost(0, args["x_ptr"].numel() * args["x_ptr"].element_size() + out.numel())


@jit
def load_bytes(x_ptr, at, mask):
    """Values as bytes, widened."""
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return ((tl.minimum(tl.maximum(x, -1.0), 1.0) + 1.0) * 127.5).to(tl.int32)


@jit
def sum_squares(x, BW: tl.constexpr):
    """Sums of 2x2 squares of [2, BW]."""
    return tl.sum(tl.sum(tl.reshape(x, [2, BW // 2, 2]), 2), 0)


@jit(launch_metadata=metadata("to_rgb", cost))
def to_rgb_kernel(x_ptr, rgb_ptr, nv12_ptr, height, width, channel_step, frame_step, row_step, column_step, BW: tl.constexpr):
    """One program: two rows of BW pixels of one frame, so that it has whole 2x2 squares for their chroma."""
    frame = tl.program_id(2).to(tl.int64)
    h = tl.program_id(1) * 2 + tl.arange(0, 2)[:, None]
    w = tl.program_id(0) * BW + tl.arange(0, BW)[None, :]
    mask = (h < height) & (w < width)
    at = frame * frame_step + h * row_step + w * column_step
    r = load_bytes(x_ptr, at, mask)
    g = load_bytes(x_ptr, at + channel_step, mask)
    b = load_bytes(x_ptr, at + 2 * channel_step, mask)
    if rgb_ptr is not None:
        to = rgb_ptr + ((frame * height + h) * width + w) * 3
        tl.store(to, r.to(tl.uint8), mask=mask)
        tl.store(to + 1, g.to(tl.uint8), mask=mask)
        tl.store(to + 2, b.to(tl.uint8), mask=mask)
    if nv12_ptr is not None:
        start = nv12_ptr + frame * (height + height // 2) * width
        luma = (11966 * r + 40254 * g + 4064 * b + 1081344) >> 16
        tl.store(start + h * width + w, luma.to(tl.uint8), mask=mask)
        r4, g4, b4 = sum_squares(r, BW), sum_squares(g, BW), sum_squares(b, BW)
        u = (-6596 * r4 - 22188 * g4 + 28784 * b4 + 33685504) >> 18
        v = (28784 * r4 - 26145 * g4 - 2639 * b4 + 33685504) >> 18
        left = tl.program_id(0) * BW + 2 * tl.arange(0, BW // 2)
        to = start + (height + tl.program_id(1)) * width + left
        tl.store(to, u.to(tl.uint8), mask=left < width)
        tl.store(to + 1, v.to(tl.uint8), mask=left < width)


# --- tiles: a warp's share of a row is 64 pixels. From arithmetic, no other tried on a GPU.

TILES: Tiles = {80: {"any": tile(4, 1, BW=256)}}


def compile_spec(name: str, dtype: str, rgb: bool) -> CompileSpec:
    steps = ("height", "width", "channel_step", "frame_step", "row_step", "column_step")
    out, absent = ("rgb_ptr", "nv12_ptr") if rgb else ("nv12_ptr", "rgb_ptr")
    signature = {"x_ptr": f"*{dtype}", out: "*u8", **dict.fromkeys(steps, "i32")}
    sizes = {absent: None, **dict(TILES[80]["any"].sizes)}
    return CompileSpec(
        f"{name} {dtype}", to_rgb_kernel, signature, sizes, TILES[80]["any"].num_warps, 1, unaligned=("channel_step", "column_step")
    )


COMPILE = [compile_spec("to_rgb", "bf16", True), compile_spec("to_nv12", "bf16", False), compile_spec("to_rgb", "fp32", True)]


# --- op


@torch.library.custom_op("everface::to_rgb", mutates_args=("rgb", "nv12"))
def launch(video_3THW: Tensor, rgb: Tensor | None, nv12: Tensor | None) -> None:
    """The kernel, into one or both outputs that the caller owns."""
    frames, height, width = video_3THW.shape[1:]
    options = select_tile("to_rgb", TILES, video_3THW.device, "any").options()
    grid = (-(-width // options["BW"]), -(-height // 2), frames)
    to_rgb_kernel[grid](video_3THW, rgb, nv12, height, width, *video_3THW.stride(), **options)


@launch.register_fake
def _(video_3THW: Tensor, rgb: Tensor | None, nv12: Tensor | None) -> None:
    return None


def to_rgb(video_3THW: Tensor) -> Tensor:
    """The op. Returns [T, H, W, 3] uint8."""
    if runs_native(video_3THW):
        rgb_THW3 = torch.empty((*video_3THW.shape[1:], 3), dtype=torch.uint8)
        native_cpu().to_rgb(*video_operand(video_3THW), rgb_THW3.data_ptr(), torch.get_num_threads())
        return rgb_THW3
    if not runs_triton(video_3THW):
        return to_rgb_reference(video_3THW)
    rgb_THW3 = video_3THW.new_empty((*video_3THW.shape[1:], 3), dtype=torch.uint8)
    launch(video_3THW, rgb_THW3, None)
    return rgb_THW3


def to_nv12(video_3THW: Tensor) -> Tensor:
    """The op. Returns [T, 3 H / 2, W] uint8."""
    frames, height, width = video_3THW.shape[1:]
    if height % 2 or width % 2:
        raise ValueError(f"NV12 has one color for a square of four pixels, so sides must be even: {height}x{width} is odd")
    if not runs_triton(video_3THW):
        return to_nv12_reference(video_3THW)
    nv12 = video_3THW.new_empty((frames, height + height // 2, width), dtype=torch.uint8)
    launch(video_3THW, None, nv12)
    return nv12
