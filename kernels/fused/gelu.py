"""GELU between the two GEMMs of an FFN that is not quantized; a quantized one has it in a GEMM's epilogue or in quantize_rows.

Contract
    y = x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))          x of any shape -> y, shape and dtype of x; float32 inside, one rounding
Cost
    memory: one read and one write. On a GPU torch does it in one pass; on a CPU torch takes 3.8 ns an element on one core, csrc/cpu 0.3.
Source
    Hendrycks & Gimpel 2016 (arXiv 1606.08415).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.cpu import native_cpu, runs_native, takes_native


def run_native(x: Tensor) -> Tensor:
    """csrc/cpu, of a tensor without gaps."""
    y = torch.empty_like(x)
    native_cpu().gelu(x.data_ptr(), y.data_ptr(), x.dtype == torch.bfloat16, x.numel(), torch.get_num_threads())
    return y


class NativeGelu(torch.autograd.Function):
    """csrc/cpu with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return run_native(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator has positions only
        (x,) = ctx.saved_tensors
        up, down = grad_outputs[0].to(x.dtype).contiguous(), torch.empty_like(x)
        native_cpu().gelu_backward(x.data_ptr(), up.data_ptr(), down.data_ptr(), x.dtype == torch.bfloat16, x.numel(), torch.get_num_threads())
        return down


def gelu(x: Tensor) -> Tensor:
    """The op; differentiable. In training csrc/cpu is called in bfloat16 only, where torch's is slow."""
    if x.is_contiguous() and runs_native(x):
        return run_native(x)
    if x.dtype == torch.bfloat16 and not torch.is_inference_mode_enabled() and x.is_contiguous() and takes_native(x):
        return cast(Tensor, NativeGelu.apply(x))
    return F.gelu(x, approximate="tanh")
