"""Unpatchify and Euler step in one kernel, against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, Poisoned

from everface.kernels.fused import flow_step as op

F32, BF16 = torch.float32, torch.bfloat16
SIGMAS = 0.85769, 0.60215


@pytest.mark.parametrize(("x_dtype", "v_dtype"), [(F32, F32), (BF16, BF16), (BF16, F32)])
@pytest.mark.parametrize(("grid", "patch", "channels"), [((3, 5), (2, 2), 16), ((2, 3), (1, 2), 5)])
def test_kernel_is_the_reference(
    grid: tuple[int, int], patch: tuple[int, int], channels: int, x_dtype: torch.dtype, v_dtype: torch.dtype
) -> None:
    """Two samples, ragged last program; the rounding of the change to v's dtype shows in bfloat16."""
    (rows, cols), (py, px), g = grid, patch, torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, 3, rows * py, cols * px, generator=g).to(DEVICE, x_dtype)
    out = torch.randn(2, 3, rows * cols, py * px * channels, generator=g).to(DEVICE, v_dtype)
    latent = Poisoned(*x.shape, dtype=x_dtype)
    op.launch(x, out, *grid, *patch, SIGMAS[1] - SIGMAS[0], latent.inside)
    want = op.flow_step_tokens_reference(x, out, grid, patch, *SIGMAS)
    tolerance = 0 if v_dtype == BF16 else 1e-6 if x_dtype == F32 else 2**-7  # a float32 product may be fused into the sum
    torch.testing.assert_close(latent.written(), want, rtol=tolerance, atol=tolerance)


def test_op_and_its_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, out = torch.randn(1, 4, 2, 4, 6, device=DEVICE), torch.randn(1, 2, 6, 16, device=DEVICE)
    want = op.flow_step(x, op.unpatchify(out, (2, 3), (2, 2)), *SIGMAS)
    monkeypatch.setattr(op, "runs_triton", lambda *_: True)
    torch.testing.assert_close(op.flow_step_tokens(x, out, (2, 3), (2, 2), *SIGMAS), want, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        op.flow_step_tokens(x, out, (3, 2), (2, 2), *SIGMAS)
