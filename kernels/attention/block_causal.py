"""Self-attention of one block of latent frames over the KV ring of its denoising step and the sink.

Contract
    o = softmax(q . [ring_k[:used], sink_k]^T / sqrt(d)) [ring_v[:used], sink_v]          no mask: the block sees itself whole
    q_THd       this block's queries, rotated at absolute positions
    ring_*_SHd  keys (rotated) and values of the last window_blocks blocks, this one included. The order of the
                slots carries no meaning; only the first `used` of them have been written
    sink_*_CHd  reference and motion tokens; keys rotated for this block (the reference rolls ahead of it)
    -> o_THd    dtype of q; softmax statistics in float32
Cost
    4 T (used + C) H d flops: 3168 x 15,312 x 5120 -> 0.99 TFLOP a layer at 704x384 in steady state, 39.7 TFLOP a step.
    The ring and the sink are two address ranges of one loop over keys; only the reference concatenates them.
"""

from __future__ import annotations

import torch

from everface.kernels.attention.cross import cross_reference


def block_causal_reference(
    q_THd: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    used: int,
    sink_k_CHd: torch.Tensor,
    sink_v_CHd: torch.Tensor,
) -> torch.Tensor:
    """Plain torch; differentiable; also the CPU path."""
    k = torch.cat((ring_k_SHd[:used], sink_k_CHd))
    v = torch.cat((ring_v_SHd[:used], sink_v_CHd))
    return cross_reference(q_THd[None], k[None], v[None])[0]


def block_causal(
    q_THd: torch.Tensor,
    ring_k_SHd: torch.Tensor,
    ring_v_SHd: torch.Tensor,
    used: int,
    sink_k_CHd: torch.Tensor,
    sink_v_CHd: torch.Tensor,
) -> torch.Tensor:
    """The op. Returns o_THd."""
    return block_causal_reference(q_THd, ring_k_SHd, ring_v_SHd, used, sink_k_CHd, sink_v_CHd)
