"""Scales for e4m3 queries, keys and values of a layer, from bounds that the weights give. No calibration, no measurement.

e4m3 is a float: 4 significant bits anywhere from 2^-6 to 448. A scale that is too large costs nothing until typical values come near 2^-6,
so a bound that can never be exceeded is enough, and nothing has to be measured, calibrated or kept for a session.

    q, k    = w * RMSnorm(x), rotated in pairs. The norm makes every row of D numbers sqrt(D) long, so no element exceeds sqrt(D) max |w|
              over its head, and no rotated pair either (Cauchy-Schwarz). D = 5120: the bound is 72 times a typical value, which
              becomes 3 to 6 in e4m3 and keeps all its bits down to a 200th of that.
    v       = W (n (1 + scale) + shift) + b with n a layer norm, at most sqrt(D) long: |v_c| <= sqrt(D) ||W_c (1 + scale)|| +
              |W_c shift + b_c|. Shift and scale depend on the noise level; the largest bound over TIMES serves all of them, the sink
              (0) too. Should rounding take a value beyond the bound, it saturates.

One scale a head (the largest bound of its channels), rounded up to a power of two, which changes no rounding: norm weights are
divided by it beforehand, so the kernel that norms and rotates writes e4m3 without another multiplication.
"""

from __future__ import annotations

import torch
from torch import nn

from everface.kernels.fused.row_primitives import E4M3_MAX
from everface.networks.transformer.linear import RowLinear

TIMES = tuple(float(t) for t in range(0, 1001, 50))  # timesteps at which the modulation is evaluated


class QKVScales(nn.Module):
    """Of one layer. e4m3 values times scale are the numbers; `weight_*_D` are the norm weights divided by the scale of their head."""

    weight_q_D: torch.Tensor
    weight_k_D: torch.Tensor
    k_scale_H: torch.Tensor
    qk_scale_H: torch.Tensor
    v_scale_H: torch.Tensor
    v_factor_H: torch.Tensor  # 1 / v_scale

    def __init__(self, weight_q_D: torch.Tensor, weight_k_D: torch.Tensor, v_bound_D: torch.Tensor, heads: int) -> None:
        super().__init__()
        root = len(weight_q_D) ** 0.5
        q_scale_H, k_scale_H = (power_of_two(root * max_per_head(w.float().abs(), heads)) for w in (weight_q_D, weight_k_D))
        v_scale_H = power_of_two(max_per_head(v_bound_D, heads))
        width = len(weight_q_D) // heads
        for name, tensor in (
            ("weight_q_D", weight_q_D / q_scale_H.repeat_interleave(width).to(weight_q_D.dtype)),
            ("weight_k_D", weight_k_D / k_scale_H.repeat_interleave(width).to(weight_k_D.dtype)),
            ("k_scale_H", k_scale_H),
            ("qk_scale_H", q_scale_H * k_scale_H),
            ("v_scale_H", v_scale_H),
            ("v_factor_H", v_scale_H.reciprocal()),
        ):
            self.register_buffer(name, tensor.detach())


def max_per_head(bound_D: torch.Tensor, heads: int) -> torch.Tensor:
    """The largest of every head's channels [H]."""
    return bound_D.unflatten(0, (heads, -1)).amax(1)


def power_of_two(bound: torch.Tensor) -> torch.Tensor:
    """The scale for e4m3 of numbers up to `bound` float32: the power of two above bound / 448, exactly; 1 for a bound of 0."""
    exponent = torch.frexp(bound / E4M3_MAX).exponent.int()
    return ((exponent.clamp(-126, 127) + 127) << 23).view(torch.float32)


def value_bound(qkv: nn.Linear | RowLinear, shift_TD: torch.Tensor, scale_TD: torch.Tensor) -> torch.Tensor:
    """The bound of every channel of v [D] float32, for a fused layer after a norm with one of T modulations."""
    weight_ND = qkv.weight.float()
    if isinstance(qkv, RowLinear):
        weight_ND = weight_ND * qkv.scale[:, None]
    width = weight_ND.shape[1]
    weight_DD, bias_D = weight_ND[2 * width :], qkv.bias[2 * width :].float()
    spread_DT = (width * weight_DD.square() @ (1 + scale_TD).square().T).sqrt()
    return (spread_DT + (weight_DD @ shift_TD.T + bias_D[:, None]).abs()).amax(1)
