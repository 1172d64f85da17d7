"""The ops over all self-attention backends: `block_causal` in 16 bits, `block_causal_fp8` in 8.

Contracts, references and kernels are in block_causal.py, block_causal_fp8.py and block_causal_hopper.py; backend.py selects among them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everface.kernels.attention.backend import attend, attend_fp8
from everface.kernels.attention.block_causal import block_causal_reference, runs_amx
from everface.kernels.attention.block_causal_fp8 import block_causal_fp8_reference
from everface.kernels.attention.operands import runs_attention, runs_fp8_attention

block_causal_op = torch.library.custom_op("everface::block_causal", attend, mutates_args=(), device_types="cuda")
block_causal_fp8_op = torch.library.custom_op("everface::block_causal_fp8", attend_fp8, mutates_args=(), device_types="cuda")


@block_causal_op.register_fake
def _(q_THd: Tensor, *_: Any) -> Tensor:
    return q_THd.new_empty(q_THd.shape)


@block_causal_fp8_op.register_fake
def _(q_THd: Tensor, *_: Any) -> Tensor:
    return q_THd.new_empty(q_THd.shape, dtype=torch.bfloat16)


def block_causal(q_THd: Tensor, k_NHd: Tensor, v_NHd: Tensor, used: int, ranges_HR2: Tensor | None = None) -> Tensor:
    """The op. Returns o_THd."""
    if runs_attention(q_THd, k_NHd, v_NHd):
        return block_causal_op(q_THd, k_NHd, v_NHd, used, ranges_HR2)
    if ranges_HR2 is None and runs_amx(q_THd, k_NHd, v_NHd):
        return torch.ops.everface.block_causal_amx.default(q_THd, k_NHd, v_NHd, used)
    return block_causal_reference(q_THd, k_NHd, v_NHd, used, ranges_HR2)


def block_causal_fp8(
    q_THd: Tensor, k_NHd: Tensor, vT_HdN: Tensor, used: int, qk_scale_H: Tensor, v_scale_H: Tensor, ranges_HR2: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The op. Returns o_THd in bfloat16."""
    run = block_causal_fp8_op if runs_fp8_attention(q_THd, k_NHd) else block_causal_fp8_reference
    return run(q_THd, k_NHd, vT_HdN, used, qk_scale_H, v_scale_H, ranges_HR2)
