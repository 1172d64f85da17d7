"""GELU between the two GEMMs of an FFN that is not quantized; a quantized one has it in a GEMM's epilogue or in quantize_rows.

Contract
    y = x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))          x of any shape -> y, shape and dtype of x; float32 inside, one rounding
Cost
    memory: one read and one write. On a GPU torch does it in one pass; on a CPU torch takes 3.8 ns an element on one core, csrc/cpu 0.3.
Source
    Hendrycks & Gimpel 2016 (arXiv 1606.08415).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.cpu import native_cpu, runs_native


def gelu(x: Tensor) -> Tensor:
    """The op; differentiable."""
    if not (x.is_contiguous() and runs_native(x)):
        return F.gelu(x, approximate="tanh")
    y = torch.empty_like(x)
    native_cpu().gelu(x.data_ptr(), y.data_ptr(), x.dtype == torch.bfloat16, x.numel(), torch.get_num_threads())
    return y
