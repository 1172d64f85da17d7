"""Memory for a kernel to write: full of NaN, with a margin on either side that must stay NaN.

Importing it also mends the interpreter, so a test of a kernel needs this and nothing else.
"""

from __future__ import annotations

import torch
from tests.kernels import interpreter

interpreter.mend()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARGIN = 64  # elements; keeps what lies between aligned to 64 bytes at the least


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
        assert not self.inside.float().isnan().any(), "left unwritten, or computed from what lies outside"
        return self.inside


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit: torch.equal would call 0 and -0 the same."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def agree(got: torch.Tensor, want: torch.Tensor, *, rounded: bool) -> None:
    """The same numbers. Where the way there was rounded to bfloat16 a few may stand on an edge and fall to its other side:
    at most one in 200, by no more than a step or two of what they were made from."""
    assert got.dtype == want.dtype and got.shape == want.shape
    got, want = got.float(), want.float()
    if not rounded:
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-5)
        return
    off = (got - want).abs()
    assert (off > 2**-8 * want.abs() + 1e-5).float().mean() <= 0.005
    assert off.max() <= 2**-5 * want.abs().max()
