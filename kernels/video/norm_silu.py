"""RMS norm over the channels of a video, and the SiLU that follows it everywhere but before attention.

Contract
    n = x / max(|x|_2 over channels, 1e-12) * sqrt(C) * gamma;   y = n sigmoid(n)     (rms_norm_channels: y = n)
    x [B, C, ...] float32, bfloat16 or float16, gamma of C elements in any shape -> y, shape and dtype of x; all of it in float32
    with one rounding at the end. Channels are last in memory; on a GPU other layouts are copied.
Cost
    memory: one read and one write. 623 MB each way for 12 frames of 704x384 at 96 channels in bfloat16, the largest of the VAE.
On a CPU
    norm_silu is csrc/cpu/norm_silu.cc where everface._native is built, forward and backward: one pass where plain torch takes five, and
    in bfloat16 one rounding (docs/decisions/0009 has times).
Source
    Zhang & Sennrich 2019 (arXiv 1910.07467); Elfwing et al. 2017 (arXiv 1702.03118).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.cpu import native_cpu, takes_native
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


def takes(*tensors: Tensor) -> bool:
    """Whether csrc/cpu takes these, whose channels are last: one dtype, float32 or bfloat16, without gaps. It has a gradient of its own."""
    fits = all(t.dtype == tensors[0].dtype and t.is_contiguous() for t in tensors)
    return fits and takes_native(*tensors)


def rows_of(x_BxC: Tensor) -> tuple[bool, int, int, int]:
    """What csrc/cpu asks of a tensor: whether it is bfloat16, rows, channels; and the number of threads."""
    channels = x_BxC.shape[-1]
    return x_BxC.dtype == torch.bfloat16, x_BxC.numel() // channels, channels, torch.get_num_threads()


class NativeNormSilu(torch.autograd.Function):
    """norm_silu of [..., C] by csrc/cpu. Keeps only its input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_BxC: Tensor, gamma: Tensor) -> Tensor:
        y_BxC, gamma_C = torch.empty_like(x_BxC), gamma.flatten().float()
        ctx.save_for_backward(x_BxC, gamma)
        native_cpu().norm_silu(x_BxC.data_ptr(), gamma_C.data_ptr(), y_BxC.data_ptr(), *rows_of(x_BxC))
        return y_BxC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator has positions only
        x_BxC, gamma = ctx.saved_tensors
        up_BxC, gamma_C = grad_outputs[0].to(x_BxC.dtype).contiguous(), gamma.flatten().float()
        down_BxC, down_C = torch.empty_like(x_BxC), torch.empty_like(gamma_C)
        addresses = [t.data_ptr() for t in (x_BxC, gamma_C, up_BxC, down_BxC, down_C)]
        native_cpu().norm_silu_backward(*addresses, *rows_of(x_BxC))
        return down_BxC, down_C.view(gamma.shape).to(gamma.dtype)


def norm_silu_into(out_BxC: Tensor, x_BCx: Tensor, gamma: Tensor) -> None:
    """The same without gradient, written to a tensor with the channels last, where a convolution reads it (see norm_silu_conv3d).

    Plain torch rounds each operation in bfloat16. There the factors of all elements are made by a GEMM: torch vectorizes a factor a pixel
    along the channels, and fewer than 32 of them in 16 bits not at all.
    """
    x_BxC = x_BCx.movedim(1, -1)
    if takes(x_BxC, out_BxC):
        gamma_C = gamma.flatten().float()
        native_cpu().norm_silu(x_BxC.data_ptr(), gamma_C.data_ptr(), out_BxC.data_ptr(), *rows_of(x_BxC))
        return
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
    x_BxC = x_BCx.movedim(1, -1)
    if takes(x_BxC):
        return cast(Tensor, NativeNormSilu.apply(x_BxC, gamma)).movedim(-1, 1)
    if not runs_triton(x_BCx, gamma):
        return norm_silu_reference(x_BCx, gamma)
    return _fused(x_BCx, gamma, True)
