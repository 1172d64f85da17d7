"""Attention in bfloat16 with its gradient on the matrix unit of a CPU (AMX), for training; torch's backward pass takes eight times its forward there.

Contract
    cross, of as many keys as one likes, with gradients for q, k and v; weights and the gradient of scores are rounded to bfloat16 for
    their products, sums are in float32, as in torch
    q [B, T, H, d], k and v [B, S, H, d] -> o [B, T, H, d]; bfloat16, d a multiple of 16, heads and their width without gaps
Cost
    4 T S H d flop a video, and 10 T S H d for the gradient, which computes the scores again. Forward and gradient of 7 windows of 192 tokens and 850 keys,
    4 heads of 48, on one busy thread of a Xeon of 2023: 14 and 44 ms, torch 19 and 98; 63 frames of 64 tokens and 5 keys: 6 and 23 ms, torch 7 and 107
Where
    csrc/cpu/attention.cc; on a CPU without AMX, where everface._native is not built and in inference mode: cross.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everface.kernels.cpu import native_cpu, takes_native


def operands(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The three in the dtype that autocast asks for, if csrc/cpu takes them, else None."""
    if torch.is_inference_mode_enabled() or q_BTHd.device.type != "cpu":
        return None
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q_BTHd.dtype
    given, heads, d = (q_BTHd, k_BSHd, v_BSHd), *q_BTHd.shape[2:]
    fits = cast == torch.bfloat16 and d % 16 == 0 and len(k_BSHd) == len(v_BSHd) == len(q_BTHd) and v_BSHd.shape[1:] == (k_BSHd.shape[1], heads, d)
    if not (fits and takes_native(*given) and native_cpu().has_amx()):
        return None
    q, k, v = (t.to(cast) for t in given)
    return q, k, v


def token_stride(t: Tensor) -> int | None:
    """Elements from token to token of [B, T, H, d], if a token's have no gaps."""
    _, _, heads, d = t.shape
    return t.stride(1) if t.stride(3) == 1 and (heads == 1 or t.stride(2) == d) else None


def dense(t: Tensor) -> tuple[Tensor, int]:
    """t, copied where a token's elements have gaps, and its token stride."""
    stride = token_stride(t)
    return (t, stride) if stride is not None else (t.contiguous(), t.shape[2] * t.shape[3])


class NativeAttention(torch.autograd.Function):
    """Keeps its inputs, its output and a sum a query, as FlashAttention-2 does (Dao 2023), so that the backward pass makes weights in one pass."""

    @staticmethod
    def forward(ctx: Any, q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
        (q, step), (k, kv_step), v = dense(q_BTHd), dense(k_BSHd), v_BSHd
        if token_stride(v) != kv_step:
            k, v = k.contiguous(), v.contiguous()
            kv_step = k.stride(1)
        batch, tokens, heads, d = q.shape
        o, cpu, threads = torch.empty((batch, tokens, heads, d), dtype=q.dtype), native_cpu(), torch.get_num_threads()
        log_sums_BHT = torch.empty(batch, heads, tokens)
        for n in range(batch):
            addresses = (t[n].data_ptr() for t in (q, k, v, o, log_sums_BHT))
            cpu.attend_block(*addresses, step, kv_step, heads * d, tokens, k.shape[1], heads, d, threads)
        ctx.save_for_backward(q, k, v, o, log_sums_BHT)
        ctx.steps = step, kv_step
        return o

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator has positions only
        q, k, v, o, log_sums_BHT = ctx.saved_tensors
        step, kv_step = ctx.steps
        batch, tokens, heads, d = q.shape
        up = grad_outputs[0].to(q.dtype).contiguous()
        downs = [torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v)]
        cpu, threads = native_cpu(), torch.get_num_threads()
        for n in range(batch):
            addresses = (t[n].data_ptr() for t in (q, k, v, o, log_sums_BHT, up, *downs))
            cpu.attend_block_backward(*addresses, step, kv_step, heads * d, tokens, k.shape[1], heads, d, threads)
        return downs[0], downs[1], downs[2]


def native_attention(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """Of what `operands` returned."""
    out: Tensor = NativeAttention.apply(q_BTHd, k_BSHd, v_BSHd)
    return out
