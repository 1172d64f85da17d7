"""Agreement of two curves."""

from __future__ import annotations

import math

from torch import Tensor


def correlation(a_T: Tensor, b_T: Tensor) -> float:
    """Pearson correlation; 0 where either curve is constant, so that a frozen face scores nothing."""
    a_T, b_T = a_T.double() - a_T.double().mean(), b_T.double() - b_T.double().mean()
    norm = a_T.norm() * b_T.norm()
    if min(a_T.norm(), b_T.norm()) < 1e-3 * math.sqrt(len(a_T)):
        return 0.0
    return (a_T @ b_T / norm).item()
