"""How audio reaches the video tokens: adaptive instance norm, one (shift, scale) for each latent frame.

Contract
    u = LayerNorm(x, eps 1e-5) * (1 + scale_f) + shift_f          shift is the first half of the pair, scale the second
    x_BFPD; shift_scale_BFE with E = 2D; -> u_BFPD in x's dtype, or another
    LayerNorm without affine, statistics in float32, rounded to x's dtype; the modulation in float32, one rounding.
    eps is part of the trained model; its other norms have 1e-6.
Cost
    memory: reads x, writes u: 65 MB a call in bf16 at 3168 x 5120, 12 calls a step.
Kernel and tiles
    Those of gate_norm_modulate, called without a residual: the formula is the same, so one kernel is enough. The residual of the
    injection is added after its attention, so it cannot be fused here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.fused.gate_norm_modulate import gate_norm_modulate, trains_rows
from everface.kernels.launch import runs_triton

EPS = 1e-5


def audio_inject_reference(x_BFPD: Tensor, shift_scale_BFE: Tensor) -> Tensor:
    """Plain torch; differentiable; also the CPU path."""
    shift_BF1D, scale_BF1D = shift_scale_BFE.float()[..., None, :].chunk(2, dim=-1)
    u_BFPD = F.layer_norm(x_BFPD, x_BFPD.shape[-1:], eps=EPS).float()
    return torch.addcmul(shift_BF1D, u_BFPD, 1 + scale_BF1D).to(x_BFPD.dtype)


def audio_inject(x_BFPD: Tensor, shift_scale_BFE: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The op. Returns the modulated tokens in `dtype`, by default x's, which attend to the audio of their frame."""
    dtype = dtype or x_BFPD.dtype
    if not runs_triton(x_BFPD, shift_scale_BFE) and not (dtype == torch.bfloat16 and trains_rows(x_BFPD, shift_scale_BFE[..., None, :])):
        return audio_inject_reference(x_BFPD, shift_scale_BFE).to(dtype)
    shift, scale = shift_scale_BFE[..., None, :].chunk(2, dim=-1)
    return gate_norm_modulate(x_BFPD, modulation=(shift, scale), eps=EPS, norm_dtype=x_BFPD.dtype, dtype=dtype)[1]
