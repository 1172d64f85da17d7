"""Attention of every query over a short list of keys, the same for all of them: text (512 keys) and audio (5 keys a frame).

Contract
    o[b,t,h] = sum_s softmax_s(q[b,t,h] . k[b,s,h] / sqrt(d)) v[b,s,h]          no mask, no bias
    q_BTHd, k_BSHd, v_BSHd -> o_BTHd, all of one floating dtype; softmax statistics in float32
    k and v may have batch 1 and then serve every batch row of q
Cost
    4 B T S H d flops. Text at 704x384: 3168 x 512 x 5120 -> 33 GFLOP a layer, bound by tensor cores;
    audio: 5 keys, bound by reading q and writing o (65 MB a layer in bf16).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_reference(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    """Plain torch; differentiable; also the CPU path."""
    batch = q_BTHd.shape[0]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BSHd, v_BSHd))
    return F.scaled_dot_product_attention(q, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)).transpose(1, 2)


def cross(q_BTHd: torch.Tensor, k_BSHd: torch.Tensor, v_BSHd: torch.Tensor) -> torch.Tensor:
    """The op. Returns o_BTHd."""
    return cross_reference(q_BTHd, k_BSHd, v_BSHd)
