"""Memory for a kernel to write: full of NaN, with a margin on either side that must stay NaN. And how close a kernel must be.

Importing it also fixes the interpreter (tests/kernels/interpreter.py), so a test of a kernel needs this and nothing else.
"""

from __future__ import annotations

import math

import torch
from tests.kernels import interpreter

interpreter.apply_fixes()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARGIN = 64  # elements; keeps the part between aligned to at least 64 bytes

# Rounding to nearest is off by at most this part of a number: half a step of its 8, 11 or 24 significant bits.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
# Error of one float32 product. A tensor core multiplies tf32 numbers of 11 bits: x = hi + lo, y = hi' + lo', and three passes give
# hi hi' + hi lo' + lo hi'. The two splits drop 2^-22 of x and of y, and lo lo' is 2^-22 of x y. The interpreter rounds once.
PRODUCT = 3 * 2.0**-22 if DEVICE == "cuda" else 2.0**-24


def attention_tolerance(dtype: torch.dtype, d: int) -> float:
    """How far attention over standard normals, heads of width d, may be from exact, relative to the largest output.

    Weights and output are rounded to dtype. In float32 a score is off by PRODUCT * sum |q k| / sqrt(d), and |q k| is 2 / pi on average;
    a weight is off by twice that, as the sum of all weights is too; the product with v adds one PRODUCT. In 16 bits the products are exact.
    """
    products = PRODUCT * (1 + 4 / math.pi * d**0.5) if dtype == torch.float32 else 0.0
    return 2.5 * ROUNDING[dtype] + products


class Poisoned:
    """`inside` is what the kernel gets, contiguous."""

    def __init__(self, *size: int, dtype: torch.dtype = torch.float32) -> None:
        count = torch.Size(size).numel()
        self.whole = torch.full((count + 2 * MARGIN,), float("nan"), device=DEVICE).to(dtype)
        self.inside = self.whole[MARGIN:-MARGIN].view(size)

    def written(self) -> torch.Tensor:
        """What was written: everything inside, nothing outside."""
        margins = torch.cat((self.whole[:MARGIN], self.whole[-MARGIN:])).float()
        assert margins.isnan().all(), "written outside"
        assert not self.inside.float().isnan().any(), "left unwritten, or computed from elements outside"
        return self.inside


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """For tensors of one byte an element: torch.equal would call 0 and -0 the same."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def agree(got: torch.Tensor, want: torch.Tensor, *, rounded: bool) -> None:
    """The same numbers. Where a step before was rounded to bfloat16, at most one in 200 may round the other way, by a step or two of what
    it was made from."""
    assert got.dtype == want.dtype and got.shape == want.shape
    got, want = got.float(), want.float()
    if not rounded:
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-5)
        return
    error = (got - want).abs()
    assert (error > 2**-8 * want.abs() + 1e-5).float().mean() <= 0.005
    assert error.max() <= 2**-5 * want.abs().max()
