"""Operands of the attention kernels: padded widths, softmax scale, precision of tl.dot, TMA descriptors; and where the kernels run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, device, dtype, float32, int32

from everface.kernels.launch import runs_triton, tile_family

MAX_WIDTH = 128  # of a head


def padded_width(d: int) -> int:
    """The power of two at which a kernel holds heads of width d. Raises ValueError beyond 128."""
    if d > MAX_WIDTH:
        raise ValueError(f"heads of {d} are wider than the {MAX_WIDTH} these kernels hold")
    return 64 if d <= 64 else MAX_WIDTH


def softmax_scale(d: int) -> float:
    """log2(e) / sqrt(d)."""
    return 1.4426950408889634 / d**0.5


def dot_precision(of: dtype) -> str:
    """input_precision of tl.dot. float32 operands go through the tensor cores as three tf32 products, which keep 22 bits."""
    return "tf32x3" if of == float32 else "tf32"


def runs_attention(*tensors: Tensor) -> bool:
    """Whether the 16-bit attention kernels run on these. Float32 is left to torch."""
    return runs_triton(*tensors) and tensors[0].element_size() == 2


def runs_fp8_attention(*tensors: Tensor) -> bool:
    """Whether the 8-bit attention kernels run on these: from sm_90 on."""
    return runs_triton(*tensors) and tile_family(tensors[0].device) >= 90


def uses_descriptors(on: device) -> bool:
    """From sm_90 on, and under the interpreter. Older GPUs have no TMA: Triton emulates descriptors there and spills
    4 KB a thread, so their kernels take pointers."""
    return on.type != "cuda" or tile_family(on) >= 90


def check_used(used: int, slots: int) -> None:
    """Raises ValueError unless 1 to `slots` slots are used."""
    if not 0 < used <= slots:
        raise ValueError(f"{used} slots used of {slots}")


def range_count(ranges_HR2: Tensor | None) -> int:
    """Ranges of keys a head, 0 if every head attends to all. Raises ValueError for what a kernel would misread."""
    if ranges_HR2 is None:
        return 0
    if ranges_HR2.dtype != int32 or not ranges_HR2.is_contiguous():
        raise ValueError(f"ranges of keys are contiguous int32, not {ranges_HR2.dtype} with strides {ranges_HR2.stride()}")
    return ranges_HR2.shape[1]


def row_descriptor(x: Tensor, rows: int, tile_rows: int, tile_width: int) -> Any:
    """x [.., N, heads, d] as [rows, heads * d], read in tiles [tile_rows, tile_width]; elements outside read as zero.

    Heads and their width must be side by side; leading dimensions, if any, must fold into one. Raises ValueError otherwise.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    heads, d = x.shape[-2:]
    if x.stride(-1) != 1 or (heads > 1 and x.stride(-2) != d):
        raise ValueError(f"heads and their width must be side by side, strides are {x.stride()}")
    if x.data_ptr() % 16 or x.stride(-3) * x.element_size() % 16 or d * x.element_size() % 16:
        raise ValueError(f"rows and heads must begin at multiples of 16 bytes: strides {x.stride()}, {x.element_size()} bytes each")
    return TensorDescriptor(x, [rows, heads * d], [x.stride(-3), 1], [tile_rows, tile_width])


def channel_descriptor(x_HdN: Tensor, slots: int, tile_slots: int, tile_width: int) -> Any:
    """The first `slots` of x as [heads * d, slots], read in tiles [tile_width, tile_slots]; elements outside read as zero.

    The slots of a channel must be side by side, and channels of all heads one after another. Raises ValueError otherwise.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    heads, d, _ = x_HdN.shape
    pitch = x_HdN.stride(1)
    if x_HdN.stride(2) != 1 or x_HdN.stride(0) != d * pitch:
        raise ValueError(f"the slots of a channel must be side by side, and the channels of all heads: strides {x_HdN.stride()}")
    if x_HdN.data_ptr() % 16 or pitch % 16:
        raise ValueError(f"channels must begin at multiples of 16 bytes, strides are {x_HdN.stride()}")
    return TensorDescriptor(x_HdN, [heads * d, slots], [pitch, 1], [tile_width, tile_slots])
