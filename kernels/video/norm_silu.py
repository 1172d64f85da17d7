"""RMS norm over the channels of a video, and the SiLU that follows it everywhere but before attention.

Contract
    n = x / max(|x|_2 over channels, 1e-12) * sqrt(C) * gamma;   y = n sigmoid(n)     (rms_norm_channels: y = n)
    x [B, C, ...] float32, bfloat16 or float16, gamma of C elements in any shape -> y, shape and dtype of x; all of it in float32
    with one rounding at the end. Channels are last in memory; on a GPU other layouts are copied.
Cost
    memory: one read and one write. 623 MB each way for 12 frames of 704x384 at 96 channels in bfloat16, the largest of the VAE.
Source
    Zhang & Sennrich 2019 (arXiv 1910.07467); Elfwing et al. 2017 (arXiv 1702.03118).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.fused.row_primitives import load_row, row_sizes
from everface.kernels.launch import CompileSpec, Cost, Tiles, jit, metadata, runs_triton, select_tile, tile, tl

# --- reference


def rms_norm_channels_reference(x_BCx: Tensor, gamma: Tensor) -> Tensor:
    """The norm alone, returned in float32. Plain torch; differentiable; also the CPU path."""
    x_BxC = x_BCx.movedim(1, -1)
    norm_Bx1 = torch.linalg.vector_norm(x_BxC, dim=-1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
    return (x_BxC * (x_BxC.shape[-1] ** 0.5 / norm_Bx1) * gamma.flatten().float()).movedim(-1, 1)


def norm_silu_reference(x_BCx: Tensor, gamma: Tensor) -> Tensor:
    """Plain torch; differentiable; also the CPU path."""
    return F.silu(rms_norm_channels_reference(x_BCx, gamma), inplace=True).to(x_BCx.dtype)


def norm_silu_into(out_BxC: Tensor, x_BCx: Tensor, gamma: Tensor) -> None:
    """The same written to a tensor with the channels last, where a convolution reads it (see norm_silu_conv3d): the same bits in float32, and
    in bfloat16 each operation rounded. There the factors of all elements are made by a GEMM: torch vectorizes a factor a pixel along the
    channels, and fewer than 32 of them in 16 bits not at all."""
    x_BxC = x_BCx.movedim(1, -1)
    norm_Bx1 = torch.linalg.vector_norm(x_BxC, dim=-1, keepdim=True).clamp_min_(1e-12)
    factor_Bx1 = x_BxC.shape[-1] ** 0.5 / norm_Bx1
    if x_BCx.dtype == torch.bfloat16:
        factor_BxC = torch.mm(factor_Bx1.view(-1, 1), gamma.view(1, -1)).view(x_BxC.shape)
        F.silu(torch.mul(x_BxC, factor_BxC, out=out_BxC), inplace=True)
        return
    torch.mul(x_BxC, factor_Bx1, out=out_BxC)
    F.silu(out_BxC.mul_(gamma.flatten()), inplace=True)


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name: every pixel read once and written once."""
    return Cost(0, sum(args[n].numel() * args[n].element_size() for n in ("x_ptr", "y_ptr")))


@jit
def activate(n, SILU: tl.constexpr):
    return n * tl.sigmoid(n) if SILU else n


@jit(launch_metadata=metadata("norm_silu", cost))
def norm_silu_kernel(
    x_ptr, gamma_ptr, y_ptr, pixels, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, BP: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    """One program: BP pixels, their channels in two parts (fused/row_primitives.py). With one pixel a program would mostly wait."""
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    row = pixel.to(tl.int64)[:, None] * D
    valid = (pixel < pixels)[:, None]
    cols_a = tl.arange(0, A)[None, :]
    cols_b = A + tl.arange(0, B)[None, :]
    mask_a = valid & (cols_a < D)
    mask_b = valid & (cols_b < D)
    a = load_row(x_ptr + row, cols_a, mask_a)
    b = load_row(x_ptr + row, cols_b, mask_b)
    length = tl.sqrt(tl.sum(a * a, 1) + tl.sum(b * b, 1))
    factor = (tl.sqrt(1.0 * D) / tl.maximum(length, 1e-12))[:, None]
    a = activate(a * factor * load_row(gamma_ptr, cols_a, cols_a < D), SILU)
    b = activate(b * factor * load_row(gamma_ptr, cols_b, cols_b < D), SILU)
    tl.store(y_ptr + row + cols_a, a.to(y_ptr.dtype.element_ty), mask=mask_a)
    tl.store(y_ptr + row + cols_b, b.to(y_ptr.dtype.element_ty), mask=mask_b)


# --- tiles: by channels, 24 values a thread at 96, 192 and 384. From arithmetic, no other tried on a GPU.

TILES: Tiles = {80: {96: tile(4, 1, BP=32), 192: tile(4, 1, BP=16), 384: tile(4, 1, BP=8), "wide": tile(4, 1, BP=1)}}


def variant(channels: int) -> int | str:
    """Which tile so many channels take."""
    return next((most for most in (96, 192, 384) if channels <= most), "wide")


def compile_spec(channels: int, dtype: str, silu: bool) -> CompileSpec:
    selected = TILES[80][variant(channels)]
    signature = {"x_ptr": f"*{dtype}", "gamma_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "pixels": "i32"}
    sizes = {**row_sizes(channels), **dict(selected.sizes), "SILU": silu}
    name = f"{'norm_silu' if silu else 'rms_norm_channels'} {dtype} {channels}"
    return CompileSpec(name, norm_silu_kernel, signature, sizes, selected.num_warps, 1, unaligned=("pixels",))


COMPILE = [compile_spec(c, "bf16", True) for c in (96, 192, 384)] + [compile_spec(384, "bf16", False), compile_spec(96, "fp32", True)]


# --- op


@torch.library.custom_op("everface::norm_silu", mutates_args=("y_xC",))
def launch(x_xC: Tensor, gamma: Tensor, silu: bool, y_xC: Tensor) -> None:
    """The kernel over contiguous [..., C], into an output that the caller owns."""
    channels = x_xC.shape[-1]
    pixels = x_xC.numel() // channels
    options = select_tile("norm_silu", TILES, x_xC.device, variant(channels)).options()
    norm_silu_kernel[(-(-pixels // options["BP"]),)](x_xC, gamma, y_xC, pixels, SILU=silu, **row_sizes(channels), **options)


@launch.register_fake
def _(x_xC: Tensor, gamma: Tensor, silu: bool, y_xC: Tensor) -> None:
    return None


def _fused(x_BCx: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    x_BxC = x_BCx.movedim(1, -1).contiguous()
    y_BxC = torch.empty_like(x_BxC)
    launch(x_BxC, gamma.contiguous(), silu, y_BxC)
    return y_BxC.movedim(-1, 1)


def rms_norm_channels(x_BCx: Tensor, gamma: Tensor) -> Tensor:
    """The norm alone, an op, in the dtype of x."""
    if not runs_triton(x_BCx, gamma):
        return rms_norm_channels_reference(x_BCx, gamma).to(x_BCx.dtype)
    return _fused(x_BCx, gamma, False)


def norm_silu(x_BCx: Tensor, gamma: Tensor) -> Tensor:
    """The op."""
    if not runs_triton(x_BCx, gamma):
        return norm_silu_reference(x_BCx, gamma)
    return _fused(x_BCx, gamma, True)
