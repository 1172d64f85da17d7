"""The end of a denoising step: tokens back to a latent, and the Euler step along the flow.

Contract
    unpatchify        out_BFPE, E = py * px * C with the channel fastest -> velocity_BCFhw, h = rows * py, w = cols * px
    flow_step         x + (sigma_next - sigma) * v: the change is rounded to v's dtype, the sum is float32, the result in x's dtype
    flow_step_tokens  both at once: flow_step(x_BCFhw, unpatchify(out_BFPE)), which is v as the head wrote it
    With v in float32 the whole step is float32; in the official model v is bfloat16.
Cost
    memory, and little of it: 1.2 MB in bf16 at 704x384. The gain is one launch instead of six.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everface.kernels.launch import CompileSpec, Cost, Tiles, jit, metadata, runs_triton, select_tile, tile, tl

# --- tiles

TILES: Tiles = {80: {"any": tile(4, 1, BLOCK=1024)}}
"""202,752 elements of a block at 704x384 are 198 programs: 1.5 waves of one program an SM, all of them resident at once."""


# --- reference


def unpatchify(out_BFPE: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Tokens in (row, column) order on `grid` to a latent. Differentiable."""
    (rows, cols), (py, px) = grid, patch
    batch, frames, _, width = out_BFPE.shape
    out = out_BFPE.view(batch, frames, rows, cols, py, px, width // (py * px))
    return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, rows * py, cols * px)


def flow_step(x: Tensor, v: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The latent at sigma_next, any shape. Plain torch on every device, differentiable; the fused op is flow_step_tokens."""
    return (x.float() + v * (sigma_next - sigma)).to(x.dtype)


def flow_step_tokens_reference(
    x_BCFhw: Tensor, out_BFPE: Tensor, grid: tuple[int, int], patch: tuple[int, int], sigma: float, sigma_next: float
) -> Tensor:  # fmt: skip
    """Plain torch; differentiable; also the CPU path."""
    return flow_step(x_BCFhw, unpatchify(out_BFPE, grid, patch), sigma, sigma_next)


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name."""
    tensors = (args["x_ptr"], args["out_ptr"], args["next_ptr"])
    return Cost(2 * args["size"], sum(t.numel() * t.element_size() for t in tensors))


@jit(launch_metadata=metadata("flow_step_tokens", cost))
def flow_step_tokens_kernel(
    x_ptr, out_ptr, next_ptr, change, size, channels, frames, h, w, PY: tl.constexpr, PX: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """BLOCK elements of the latent a program, in its order: its reads of x and its writes are whole cache lines."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    column, i_row = i % w, i // w
    row, i_frame = i_row % h, i_row // h
    frame, i_channel = i_frame % frames, i_frame // frames
    channel, batch = i_channel % channels, i_channel // channels
    token = ((batch * frames + frame) * (h // PY) + row // PY) * (w // PX) + column // PX
    element = (row % PY * PX + column % PX) * channels + channel
    v = tl.load(out_ptr + token * (PY * PX * channels) + element, mask=mask, other=0.0).to(tl.float32)
    moved = (v * change).to(out_ptr.dtype.element_ty).to(tl.float32)
    x = tl.load(x_ptr + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(next_ptr + i, x + moved, mask=mask)


COMPILE = [
    CompileSpec(
        name="flow_step_tokens",
        kernel=flow_step_tokens_kernel,
        signature={"x_ptr": "*bf16", "out_ptr": "*bf16", "next_ptr": "*bf16", "change": "fp32"}
        | dict.fromkeys(("size", "channels", "frames", "h", "w"), "i32"),
        constexprs={"PY": 2, "PX": 2, "BLOCK": 1024},
        num_warps=4,
        num_stages=1,
        unaligned=("frames",),
    )
]


# --- op


@torch.library.custom_op("everface::flow_step_tokens", mutates_args=("latent",))
def launch(x: Tensor, out: Tensor, rows: int, cols: int, py: int, px: int, change: float, latent: Tensor) -> None:
    """The kernel, into a contiguous latent that the caller owns. x and out contiguous."""
    options = select_tile("flow_step_tokens", TILES, x.device, "any").options()
    _, channels, frames, h, w = x.shape
    assert (h, w) == (rows * py, cols * px), (x.shape, rows, cols, py, px)
    programs = -(-x.numel() // options["BLOCK"])
    flow_step_tokens_kernel[(programs,)](x, out, latent, change, x.numel(), channels, frames, h, w, PY=py, PX=px, **options)


@launch.register_fake
def _(*args: Any) -> None:
    return None


def flow_step_tokens(
    x_BCFhw: Tensor, out_BFPE: Tensor, grid: tuple[int, int], patch: tuple[int, int], sigma: float, sigma_next: float
) -> Tensor:  # fmt: skip
    """The op. Returns the latent at sigma_next, like x_BCFhw."""
    if not runs_triton(x_BCFhw, out_BFPE):
        return flow_step_tokens_reference(x_BCFhw, out_BFPE, grid, patch, sigma, sigma_next)
    latent = torch.empty_like(x_BCFhw, memory_format=torch.contiguous_format)
    launch(x_BCFhw.contiguous(), out_BFPE.contiguous(), *grid, *patch, sigma_next - sigma, latent)
    return latent
