"""The end of a denoising step: tokens back to a latent, and the Euler step along the flow.

Contract
    unpatchify  out_BFPE, E = py * px * C with the channel fastest -> velocity_BCFhw, h = rows * py, w = cols * px
    flow_step   x + (sigma_next - sigma) * v: the product is rounded to v's dtype, the sum is float32, the result in x's dtype
Cost
    memory and small: 0.4 MB in bf16 at 704x384.
"""

from __future__ import annotations

import torch


def unpatchify(out_BFPE: torch.Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> torch.Tensor:
    """Tokens in (row, column) order on `grid` to a latent. Differentiable."""
    (rows, cols), (py, px) = grid, patch
    batch, frames, _, width = out_BFPE.shape
    out = out_BFPE.view(batch, frames, rows, cols, py, px, width // (py * px))
    return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, rows * py, cols * px)


def flow_step_reference(x: torch.Tensor, v: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """Plain torch; differentiable; also the CPU path."""
    return (x.float() + v * (sigma_next - sigma)).to(x.dtype)


def flow_step(x: torch.Tensor, v: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """The op. Returns the latent at sigma_next, any shape."""
    return flow_step_reference(x, v, sigma, sigma_next)
