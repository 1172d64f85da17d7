"""The CPU's builds of these ops: csrc/cpu, in everface._native. Which operands they take, and how those are passed.

An op tries its Triton kernel, then this, then its reference in torch. Results differ from the reference's in the order of sums only; the number of
threads does not change them. Ops of a step run here in inference mode only: what training runs without gradients, to repeat it with gradients
later, must give the same bits both times.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from everface.core import native

TYPES = (torch.float32, torch.bfloat16)
LIBRARY = torch.library.Library("everface", "FRAGMENT")  # ops that a profiler and a counter of operations are to see; 2.5 us a call
Operand = tuple[int, bool, int]
"""What csrc/cpu is told of a tensor of rows: address, whether it is bfloat16, elements from row to row."""


@functools.cache
def native_cpu() -> Any:
    """everface._native.cpu; None if it is not built, or by an older version."""
    module = getattr(native.find(), "cpu", None)
    return module if hasattr(module, "warp_frames") else None


def takes_native(*tensors: Tensor) -> bool:
    """Whether csrc/cpu can be given these: all in memory, float32 or bfloat16, not empty; and whether it is built."""
    fits = all(t.is_cpu and t.dtype in TYPES and type(t) in (Tensor, torch.nn.Parameter) and t.numel() > 0 for t in tensors)
    return fits and native_cpu() is not None


def runs_native(*tensors: Tensor) -> bool:
    """Whether an op on these goes to csrc/cpu."""
    return torch.is_inference_mode_enabled() and takes_native(*tensors)


def operand(t: Tensor | None, stride: int) -> Operand | None:
    """Of a tensor whose rows have no gaps inside."""
    return None if t is None else (t.data_ptr(), t.dtype == torch.bfloat16, stride)


def video_operand(video_3THW: Tensor) -> tuple[int, bool, tuple[int, ...], tuple[int, ...]]:
    """Of frames with any strides."""
    return video_3THW.data_ptr(), video_3THW.dtype == torch.bfloat16, tuple(video_3THW.shape[1:]), video_3THW.stride()
