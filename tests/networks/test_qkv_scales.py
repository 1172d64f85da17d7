"""Scales of 8-bit attention: no output of the layer exceeds them, and typical ones are far above the values where e4m3 loses bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from everface.kernels.fused.norm_rope import rms_norm_reference, rotate_reference
from everface.networks.transformer.linear import RowLinear
from everface.networks.transformer.qkv_scales import QKVScales, power_of_two, value_bound

HEADS, WIDTH, D = 4, 16, 64


def drawn(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_scales_are_powers_of_two_that_hold_the_bound() -> None:
    bound = torch.tensor([448.0, 449.0, 1.0, 1e-3, 3e5, 0.0])
    scale = power_of_two(bound)
    assert (torch.frexp(scale).mantissa == 0.5).all()
    assert (bound / scale <= 448).all() and (bound / scale >= 224)[:-1].logical_or(bound[:-1] / scale[:-1] == 448).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_query_or_key_exceeds_e4m3(dtype: torch.dtype) -> None:
    """The worst row has its norm in one channel, of the largest weight; or in two that a rotation by 45 degrees adds up."""
    weight = (1 + 3 * drawn(D, seed=1).abs()).to(dtype)
    coding = QKVScales(weight, 2 * weight, torch.ones(D), HEADS)
    rows = torch.cat((100 * torch.eye(D), torch.eye(D) + torch.eye(D).roll(1, 1), drawn(200, D, seed=2))).to(dtype)
    angle = torch.full((len(rows), WIDTH // 2), torch.pi / 4)
    turn = torch.stack((angle.cos(), angle.sin()), -1)
    for scaled_weight, plain, scale in (
        (coding.weight_q_D, weight, coding.qk_scale_H / coding.k_scale_H), (coding.weight_k_D, 2 * weight, coding.k_scale_H),
    ):  # fmt: skip
        over = rotate_reference(rms_norm_reference(rows, scaled_weight, 1e-6).unflatten(-1, (HEADS, WIDTH)), turn)
        assert 150 < over.abs().max() <= 448 * (1 + 2**-7)
        normal = over[-200:].float()
        assert normal.abs().median() > 2**-2  # where all bits are kept: 2^-6
        exact = rotate_reference(rms_norm_reference(rows, plain, 1e-6).unflatten(-1, (HEADS, WIDTH)), turn)
        assert torch.equal(over.float() * scale[:, None], exact.float())  # powers of two change no rounding


@pytest.mark.parametrize("quantized", [False, True])
def test_no_value_exceeds_e4m3(quantized: bool) -> None:
    torch.manual_seed(3)
    linear = nn.Linear(D, 3 * D).requires_grad_(False)
    layer = RowLinear(linear) if quantized else linear
    shift, scale = drawn(3, D, seed=4), drawn(3, D, seed=5)
    bound_D = value_bound(layer, shift, scale)
    weight_DD = (layer.weight.float() * layer.scale[:, None] if isinstance(layer, RowLinear) else linear.weight)[2 * D :]
    for t in range(3):
        worst_DD = weight_DD * (1 + scale[t])  # the norm of row c that makes channel c largest: along its weights
        worst_DD = worst_DD * torch.sign(weight_DD @ shift[t] + linear.bias[2 * D :])[:, None]
        norms = torch.cat((F.normalize(worst_DD, dim=1) * D**0.5, F.layer_norm(drawn(500, D, seed=6), (D,))))
        v = torch.addcmul(shift[t], norms, 1 + scale[t]) @ weight_DD.T + linear.bias[2 * D :]
        assert (v.abs() <= bound_D * (1 + 1e-5)).all()
        reached = v[:D].diagonal().abs() / bound_D
        assert reached.max() <= 1 + 1e-5 and reached.median() > 0.3  # the bound holds and is nearly reached
    coding = QKVScales(torch.ones(D), torch.ones(D), bound_D, HEADS)
    assert (bound_D.unflatten(0, (HEADS, WIDTH)).amax(1) * coding.v_factor_H <= 448).all()
    assert torch.equal(coding.v_factor_H * coding.v_scale_H, torch.ones(HEADS))
