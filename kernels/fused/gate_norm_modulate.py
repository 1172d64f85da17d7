"""What stands between two matrix products of a block: gated residual, LayerNorm, scale and shift.

Contract
    x' = x + gate * y                              float32 (x unchanged when there is no y; gate 1 when there is no gate)
    n  = LayerNorm(x' as norm_dtype) [* weight + bias]      statistics in float32, one rounding to norm_dtype
    u  = n * (1 + scale) + shift                   float32, one rounding to dtype (n itself when there is no modulation)
    x, y [..., D]; gate, shift, scale broadcast against them, one row a latent frame; weight_D, bias_D
    -> x' (dtype of x without y, else float32), u [..., D] in dtype
Cost
    memory: reads x and y, writes x' and u: 130 to 195 MB a call at 3168 x 5120, three calls a layer.
Rounding
    official: the block's input, norm3 and the head norm in the model's dtype, the norm before the FFN in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gate_residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """x + gate * y in float32; gate None is 1. Alone it closes a block."""
    return x.float() + y.float() if gate is None else torch.addcmul(x.float(), gate, y.float())


def gate_norm_modulate_reference(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    affine: tuple[torch.Tensor, torch.Tensor] | None,
    modulation: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    norm_dtype: torch.dtype,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain torch; differentiable; also the CPU path."""
    if y is not None:
        x = gate_residual(x, y, gate)
    weight, bias = affine or (None, None)
    u = F.layer_norm(x.to(norm_dtype), x.shape[-1:], weight, bias, eps)
    if modulation is not None:
        shift, scale = modulation
        u = torch.addcmul(shift, u.float(), 1 + scale)
    return x, u.to(dtype)


def gate_norm_modulate(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    *,
    affine: tuple[torch.Tensor, torch.Tensor] | None = None,
    modulation: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float,
    norm_dtype: torch.dtype,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op. `affine` is (weight, bias), `modulation` is (shift, scale). Returns (x', u)."""
    return gate_norm_modulate_reference(x, y, gate, affine, modulation, eps, norm_dtype, dtype)
