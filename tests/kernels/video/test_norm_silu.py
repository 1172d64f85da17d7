"""RMS norm over channels and SiLU: the kernel against its reference, at widths with and without a whole second part."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, Poisoned, agree

from everface.kernels.video import norm_silu as module

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SIZES = {"96": (3, 7, 5, 96), "192": (1, 33, 192), "384": (2, 3, 384), "tiny": (5, 13, 8), "odd": (2, 9, 100), "wide": (3, 640)}


def drawn(size: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Channels last; one pixel is all zero, one very small."""
    g = torch.Generator().manual_seed(len(size) + size[-1])
    x = 2 * torch.randn(size, generator=g) + 0.5
    x.view(-1, size[-1])[0] = 0
    x.view(-1, size[-1])[1] *= 1e-9
    return x.to(DEVICE, dtype), torch.randn(size[-1], generator=g).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("size", SIZES)
def test_kernel_is_the_reference(size: str, dtype: torch.dtype) -> None:
    x_xC, gamma = drawn(SIZES[size], dtype)
    for silu in (True, False):
        y = Poisoned(*x_xC.shape, dtype=dtype)
        module.launch(x_xC, gamma, silu, y.inside)
        x_BCx = x_xC[None].movedim(-1, 1)
        want = module.norm_silu_reference(x_BCx, gamma) if silu else module.rms_norm_channels_reference(x_BCx, gamma).to(dtype)
        agree(y.written(), want.movedim(1, -1)[0], rounded=dtype != F32)


def test_nothing_beside_the_pixels_is_read() -> None:
    around = Poisoned(11, 96)
    x_PC, gamma = drawn((11, 96), F32)
    around.inside.copy_(x_PC)
    weights = Poisoned(96)
    weights.inside.copy_(gamma)
    y = Poisoned(11, 96)
    module.launch(around.inside, weights.inside, True, y.inside)
    agree(y.written(), module.norm_silu_reference(x_PC, gamma), rounded=False)


def test_ops_keep_shape_layout_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Video and images, channels last and not, gamma in the shapes of the checkpoint."""
    g = torch.Generator().manual_seed(3)
    video = torch.randn(2, 24, 3, 4, 5, generator=g).to(DEVICE)
    for x, gamma in ((video, torch.randn(24, 1, 1, 1)), (video[:, :, 0], torch.randn(24, 1, 1))):
        gamma = gamma.to(DEVICE)
        want = module.norm_silu_reference(x, gamma), module.rms_norm_channels_reference(x, gamma)
        for laid in (x, x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)):
            with monkeypatch.context() as patch:
                patch.setattr(module, "runs_triton", lambda *_: True)
                got = module.norm_silu(laid, gamma), module.rms_norm_channels(laid, gamma)
            assert all(y.movedim(1, -1).is_contiguous() for y in got)
            agree(got[0], want[0], rounded=False)
            agree(got[1], want[1], rounded=False)


def test_reference_against_torch() -> None:
    """An independent way to the same numbers: torch's own RMS norm and SiLU in float64."""
    x, gamma = drawn((6, 48), F32)
    x = x[2:].double().cpu()
    want = torch.nn.functional.silu(torch.nn.functional.rms_norm(x, (48,), gamma.double().cpu(), 1e-30))
    torch.testing.assert_close(module.norm_silu_reference(x.float(), gamma.cpu()).double(), want, rtol=1e-5, atol=1e-6)
