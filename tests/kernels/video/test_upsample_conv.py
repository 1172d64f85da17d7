"""Nearest, order of frames and a convolution in one: the kernel against plain torch, one step at a time, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, Poisoned
from tests.kernels.video.test_causal_conv3d import close, within

from everface.kernels.video import upsample_conv as module
from everface.kernels.video.causal_conv3d import launch

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def exact(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, side: int) -> torch.Tensor:
    """From [B, T, H, W, side * CI]: frames one after the other, each pixel four times, convolution; [B, side * T, 2 H, 2 W, CO]."""
    frames = [half for t in x.double().cpu().unbind(1) for half in t.chunk(side, -1)]
    large = [f.repeat_interleave(2, 1).repeat_interleave(2, 2).permute(0, 3, 1, 2) for f in frames]
    made = [F.conv2d(f, w.double().cpu().permute(0, 3, 1, 2), bias.double().cpu(), padding=1) for f in large]
    return torch.stack(made, 1).permute(0, 1, 3, 4, 2)


@pytest.mark.parametrize(
    ("videos", "frames", "height", "width", "c_in", "c_out", "side", "dtype"),
    [
        (1, 3, 3, 4, 16, 8, 2, F32),
        (2, 2, 3, 2, 16, 16, 2, BF16),
        (1, 2, 7, 5, 16, 8, 1, F32),
        (1, 1, 2, 3, 13, 96, 1, F32),
        (1, 1, 2, 3, 32, 21, 2, F16),
    ],
)
def test_kernel_is_the_three_steps(
    videos: int, frames: int, height: int, width: int, c_in: int, c_out: int, side: int, dtype: torch.dtype
) -> None:
    x = within(videos, frames, height, width, side * c_in, dtype=dtype, seed=1)
    w = within(c_out, 3, 3, c_in, dtype=dtype, seed=2, scale=(9 * c_in) ** -0.5)
    bias = within(c_out, dtype=dtype, seed=3)
    want = exact(x, w, bias, side)
    y = Poisoned(videos, side * frames, 2 * height, 2 * width, c_out, dtype=dtype)
    launch(x, None, w[:, None], bias, None, side, 2, y.inside)
    close(y.written(), want, dtype)
    reference = module.upsample_conv_reference(x.movedim(-1, 1), w.movedim(-1, 1), bias, side)
    close(reference.movedim(1, -1), want, dtype)


def test_op_launches_what_the_reference_says(monkeypatch: pytest.MonkeyPatch) -> None:
    x = within(2, 2, 3, 4, 16, dtype=F32, seed=1).movedim(-1, 1)
    w, bias = torch.randn(8, 8, 3, 3, device=DEVICE), torch.randn(8, device=DEVICE)
    want = exact(x.movedim(1, -1), w.movedim(1, -1), bias, 2)
    monkeypatch.setattr(module, "runs_kernel", lambda *_: True)
    y = module.upsample_conv(x, w, bias, 2)
    close(y.movedim(1, -1), want, F32)


def test_gradients_go_to_the_reference() -> None:
    x = torch.randn(1, 8, 2, 2, 2, requires_grad=True)
    assert module.upsample_conv(x, torch.randn(3, 4, 3, 3), None, 2).requires_grad


@pytest.mark.parametrize("side", [1, 2])
def test_folded_taps_are_the_same_convolution(side: int) -> None:
    x, weight, bias = torch.randn(2, 6 * side, 3, 5, 4), torch.randn(7, 6, 3, 3), torch.randn(7)
    with torch.no_grad():
        folded, whole = module.upsample_conv_folded(x, weight, bias, side), module.upsample_conv_reference(x, weight, bias, side)
    assert folded.shape == whole.shape == (2, 7, 3 * side, 10, 8)
    assert (folded - whole).abs().max() < 2e-6 * whole.abs().max()
