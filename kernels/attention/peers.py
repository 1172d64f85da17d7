"""Attention by libraries: torch's cuDNN and FlashAttention, and the packages flash-attn and xformers where they are installed.

Contract: arguments and result of block_causal, in float16 or bfloat16. A peer may need to run once, outside of a capture, for each shape:
cuDNN builds a plan for it then (tens of milliseconds), which a capture cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
OverKeys = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # q_BTHd, k_BSHd, v_BSHd -> o_BTHd

PACKAGES = {  # peer -> (module, function), the first that is installed serves
    "flash-attn": (("flash_attn_interface", "flash_attn_func"), ("flash_attn", "flash_attn_func")),
    "xformers": (("xformers.ops", "memory_efficient_attention"),),
}
TORCH = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@cache
def over_keys(name: str) -> OverKeys:
    """The peer's own function. ImportError, or whatever its import raises, where it is not installed or broken."""
    if name in TORCH:

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(TORCH[name]):
                return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

        return attend
    installed = [(module, function) for module, function in PACKAGES[name] if find_spec(module.split(".")[0])]
    if not installed:
        raise ImportError(f"{name} is not installed")
    module, function = installed[0]
    called: Any = getattr(import_module(module), function)

    def attend_by_package(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = called(q, k, v)
        return o[0] if isinstance(o, tuple) else o  # some releases add the log of the sums

    return attend_by_package


@cache
def peer(name: str) -> Attend:
    """cudnn, flash, flash-attn or xformers over the slots that are used. Raises as over_keys."""
    attend = over_keys(name)
    return lambda q_THd, k_NHd, v_NHd, used: attend(q_THd[None], k_NHd[None, :used], v_NHd[None, :used])[0].contiguous()


PEERS = (*TORCH, *PACKAGES)


@cache
def trouble(name: str, device: torch.device, dtype: torch.dtype, d: int) -> str:
    """Why the peer cannot serve, "" if it can: it is imported, run on a few ragged tokens and compared with the reference in float32.
    A broken installation says so here, in whatever it raises, and not in the first step."""
    from everface.kernels.attention.block_causal import block_causal_reference

    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 2, d, generator=random).to(device) for n in (33, 70, 70))
    try:
        o = peer(name)(q.to(dtype), k.to(dtype), v.to(dtype), 61).float()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # of a foreign package: anything
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    exact = block_causal_reference(q, k, v, 61)
    off = float((o - exact).abs().max() / exact.abs().max())
    return "" if off <= 3e-2 else f"its answer is off by {off:.2g} of the largest"
