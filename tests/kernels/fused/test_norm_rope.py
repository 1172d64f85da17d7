"""RMS norm and rotary embedding alone: the kernel against the references."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.fused.test_qk_norm_rope_quantize import near
from tests.kernels.fused.test_qk_norm_rope_store import drawn, rope_table
from tests.kernels.poison import DEVICE, Poisoned, agree, same_bits

from everface.kernels.fused import norm_rope as op

F32, BF16, E4M3 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
needs_e4m3 = pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="the GPU has no e4m3")


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_norm_and_rotation_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples share the table of three tokens."""
    x, weight, turn = drawn(2, 3, 3, 64, dtype=dtype), drawn(192, dtype=dtype, seed=4), rope_table(3, 64)
    flat = x.flatten(-2)
    want_norm, want_turn = op.rms_norm_reference(flat, weight, 1e-6), op.rotate_reference(x, turn)
    if DEVICE == "cpu":
        agree(op.rms_norm(flat, weight, 1e-6), want_norm, rounded=dtype == BF16)
        agree(op.rotate(x, turn), want_turn, rounded=dtype == BF16)
    monkeypatch.setattr(op, "runs_triton", lambda *_: True)
    agree(op.rms_norm(flat, weight, 1e-6), want_norm, rounded=dtype == BF16)
    agree(op.rotate(x, turn), want_turn, rounded=dtype == BF16)
    cache = torch.full((2, 5, 3, 64), float("nan"), device=DEVICE, dtype=dtype)
    agree(op.rotate(x, turn, out=cache[:, :3]), want_turn, rounded=dtype == BF16)  # into the first slots of every layer
    assert cache[:, 3:].isnan().all() and not cache[:, :3].isnan().any()
    out = Poisoned(6, 192, dtype=dtype)
    op.launch_rows(flat.reshape(6, 192), weight, turn, 1e-6, out.inside.view(2, 3, 192))
    agree(out.written().view(x.shape), op.rotate_reference(want_norm.view(x.shape), turn), rounded=dtype == BF16)


@needs_e4m3
def test_a_rotation_that_ends_in_e4m3(monkeypatch: pytest.MonkeyPatch) -> None:
    x, turn = 100 * drawn(2, 3, 3, 64, seed=4, dtype=BF16), rope_table(3, 64)
    want = op.rotate(x, turn).clamp(-448, 448).to(E4M3)
    if DEVICE == "cpu":
        assert same_bits(op.rotate(x, turn, torch.empty_like(want)), want)
        monkeypatch.setattr(op, "runs_triton", lambda *_: True)
    cache = torch.zeros(2, 5, 3, 64, device=DEVICE).to(E4M3)
    near(op.rotate(x, turn, out=cache[:, :3]), want)
    assert not cache[:, 3:].float().any()
