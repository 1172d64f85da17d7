"""Fixes Triton's interpreter where it is wrong about small floats. Import this before launching a kernel on the CPU.

As it comes (3.6 to 3.9): casts to bfloat16 truncate, casts to fp8 are wrong for a few per cent of the values and do not saturate,
and tl.dot multiplies the bits of bfloat16 operands as integers. Here torch does the casts, as the GPU does (nearest,
ties to even; e4m3 saturates), and dot widens its operands. Arithmetic on bfloat16 and fp8 would still be garbage, so it raises instead:
a kernel widens right after its loads. Reductions such as tl.sum on them are not caught.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

STORED = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}  # as raw bits in numpy
PLAIN = {tl.float16: torch.float16, tl.float32: torch.float32, tl.float64: torch.float64}
BITS = {1: (np.uint8, torch.uint8), 2: (np.int16, torch.int16), 4: (np.int32, torch.int32), 8: (np.int64, torch.int64)}


def convert(values: np.ndarray, source: Any, target: Any, _rounding: Any = None) -> np.ndarray:
    """Replaces interpreter._convert_float: the target's bits, in the shape of `values`."""
    known = STORED | PLAIN
    as_numpy, as_torch = BITS[values.itemsize]
    x = torch.from_numpy(np.ascontiguousarray(values).view(as_numpy)).view(as_torch).view(known[source])
    if target == tl.float8e4nv:
        x = x.double().clamp(-448, 448)  # NaN stays NaN
    out = x.to(known[target]).contiguous()
    return out.view(BITS[out.element_size()][1]).numpy().view(getattr(np, f"uint{8 * out.element_size()}"))


def widen(x: Any) -> np.ndarray:
    return convert(x.data, x.dtype.scalar, tl.float32).view(np.float32) if x.dtype.scalar in STORED else x.data


def dot(_: Any, a: Any, b: Any, d: Any, *_options: Any) -> Any:
    """Replaces InterpreterBuilder.create_dot."""
    return interpreter.TensorHandle(np.matmul(widen(a), widen(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)


def apply_fixes() -> None:
    """Idempotent."""
    builder: Any = interpreter.InterpreterBuilder
    if builder.create_dot is dot:
        return
    plain = builder.binary_op

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar in STORED or rhs.dtype.scalar in STORED:
            raise TypeError(f"{op.__name__} on {lhs.dtype.scalar}: widen to float32 first")
        return plain(self, lhs, rhs, op)

    interpreter._convert_float = convert
    builder.create_dot, builder.binary_op = dot, binary_op


apply_fixes()
