"""Attention by libraries: torch's cuDNN and FlashAttention, and the packages flash-attn and xformers where they are installed.

Contract
    arguments and result of block_causal, in float16 or bfloat16
    A library may need one run outside of a capture for each shape: cuDNN builds a plan then (tens of milliseconds), which a capture cannot.
Thread safety
    Any thread may call any backend at any time. torch's two are called as ATen ops: the context manager `sdpa_kernel` would switch backends
    off for the whole process, so another thread's F.scaled_dot_product_attention (the decoder's) could find no viable backend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from everface.kernels.attention.block_causal import block_causal_reference

BlockAttention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q_BTHd, k_BSHd, v_BSHd -> o_BTHd

PACKAGES = {  # backend -> (module, function), the first that is installed serves
    "flash-attn": (("flash_attn_interface", "flash_attn_func"), ("flash_attn", "flash_attn_func")),
    "xformers": (("xformers.ops", "memory_efficient_attention"),),
}


def cudnn_attention(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """o_BTHd by cuDNN. Raises RuntimeError where cuDNN cannot serve."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BSHd, v_BSHd))
    o, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)
    return o.transpose(1, 2)


def flash_attention(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """o_BTHd by torch's own FlashAttention, of a GPU or of a CPU. Raises RuntimeError where it cannot serve."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BSHd, v_BSHd))
    aten = torch.ops.aten
    o, *_ = (aten._scaled_dot_product_flash_attention if q.is_cuda else aten._scaled_dot_product_flash_attention_for_cpu)(q, k, v)
    return o.transpose(1, 2)


TORCH: dict[str, Attention] = {"cudnn": cudnn_attention, "flash": flash_attention}
LIBRARIES = (*TORCH, *PACKAGES)


@cache
def load_attention(name: str) -> Attention:
    """The library's own function. Raises ImportError where it is not installed, and any exception of its import where it is broken."""
    if name in TORCH:
        return TORCH[name]
    installed = [(module, function) for module, function in PACKAGES[name] if find_spec(module.split(".")[0])]
    if not installed:
        raise ImportError(f"{name} is not installed")
    module, function = installed[0]
    package_attention: Any = getattr(import_module(module), function)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = package_attention(q, k, v)
        return o[0] if isinstance(o, tuple) else o  # some releases add the log of the sums

    return attend


@cache
def load_block_attention(name: str) -> BlockAttention:
    """cudnn, flash, flash-attn or xformers over the slots that are used. Raises as load_attention."""
    attend = load_attention(name)
    return lambda q_THd, k_NHd, v_NHd, used: attend(q_THd[None], k_NHd[None, :used], v_NHd[None, :used])[0].contiguous()


@cache
def find_fault(name: str, device: torch.device, dtype: torch.dtype, d: int) -> str:
    """Why the library cannot serve heads of width d, "" if it can. It is imported, run on a few ragged tokens and compared with the
    reference in float32, so that a broken installation shows here and not in the first step."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 2, d, generator=random).to(device) for n in (33, 70, 70))
    try:
        o = load_block_attention(name)(q.to(dtype), k.to(dtype), v.to(dtype), 61).float()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # of a foreign package: anything
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    exact = block_causal_reference(q, k, v, 61)
    error = float((o - exact).abs().max() / exact.abs().max())
    return "" if error <= 3e-2 else f"its result is off by {error:.2g} of the largest value"
