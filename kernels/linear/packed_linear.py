"""A GEMM in bfloat16 on the matrix unit of a CPU (AMX), with its weight packed once, and GELU in its epilogue.

Contract
    y = x W^T + b, then GELU in its tanh form if asked for; sums in float32, one rounding
    x [..., K] bfloat16, W [O, K], b [O] -> y [..., O] bfloat16; K a multiple of 32. `pack_weight` makes W's packed form, of O rounded up to 32
Cost
    2 rows K O flop. For 192 rows of 192 to 768: 49 us on one core of a Xeon of 2023, 1150 GFLOP/s; a call of torch's takes 160 (best of five, a
    throw-away script), as it packs the weight every time and looks for its kernel.
Where
    csrc/cpu/amx.cc; on a CPU without AMX, and where everface._native is not built, weights stay as they are and F.linear multiplies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everface.kernels.cpu import LIBRARY, native_cpu, takes_native

DEPTH = 32  # of a tile: what K must be a multiple of


def packs(weight_OK: Tensor) -> bool:
    """Whether a layer of this weight can be packed."""
    fits = weight_OK.dtype == torch.bfloat16 and weight_OK.shape[1] % DEPTH == 0
    return fits and takes_native(weight_OK) and native_cpu().has_amx()


def pack_weight(weight_OK: Tensor) -> Tensor:
    """The packed form, of one dimension. `packs(weight_OK)` must be true."""
    (out, width), weight_OK = weight_OK.shape, weight_OK.detach().contiguous()
    packed = torch.empty(native_cpu().packed_size(out, width), dtype=torch.bfloat16)
    native_cpu().pack_weight(weight_OK.data_ptr(), packed.data_ptr(), out, width)
    return packed


def run_native(x: Tensor, packed: Tensor, bias_O: Tensor, gelu: bool) -> Tensor:
    """csrc/cpu/amx.cc. Returns y."""
    *size, width = x.shape
    rows_RK, out = x.reshape(-1, width).contiguous(), bias_O.numel()
    y = torch.empty((*size, out), dtype=torch.bfloat16)
    addresses = packed.data_ptr(), bias_O.data_ptr(), y.data_ptr()
    native_cpu().linear(rows_RK.data_ptr(), width, *addresses, out, len(rows_RK), width, out, gelu, torch.get_num_threads())
    return y


LIBRARY.define("packed_linear(Tensor x, Tensor packed, Tensor bias_O, bool gelu) -> Tensor")
LIBRARY.impl("packed_linear", run_native, "CPU")


def packed_linear(x: Tensor, packed: Tensor, bias_O: Tensor, gelu: bool = False) -> Tensor:
    """The op: [..., K] bfloat16 -> [..., O]. No gradients."""
    return torch.ops.everface.packed_linear.default(x, packed, bias_O, gelu)
