"""Frames warped and made bytes by csrc/cpu against the references in torch."""

from __future__ import annotations

import pytest
import torch

from everface.kernels.cpu import native_cpu, video_operand
from everface.kernels.video.to_rgb import to_rgb, to_rgb_reference
from everface.kernels.video.warp_frames import warp_frames, warp_frames_reference

F32, BF16 = torch.float32, torch.bfloat16
pytestmark = pytest.mark.skipif(native_cpu() is None, reason="everface._native is not built")


def drawn(frames: int, height: int, width: int, dtype: torch.dtype, *, last: bool) -> torch.Tensor:
    """[3, T, H, W] beyond -1..1 too, channels last or not, and a part of something larger."""
    video = (1.2 * torch.randn(3, frames + 2, height + 3, width + 5, generator=torch.Generator().manual_seed(width))).to(dtype)
    return (video.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) if last else video)[:, 1:-1, 2:-1, 1:-4]


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("size", [(3, 40, 56), (1, 7, 3), (2, 1, 2)])
def test_warp_is_the_reference(size: tuple[int, int, int], last: bool, dtype: torch.dtype) -> None:
    """Flows that leave the frame too; a rounded position moves a sample by as much as neighbors differ."""
    g = torch.Generator().manual_seed(5)
    fields, motion = torch.randn(8, *size[1:], 2, generator=g), 0.2 * torch.randn(8, size[0], generator=g)
    video = drawn(*size, dtype, last=last)
    with torch.inference_mode():
        warped = warp_frames(video, fields, motion)
    want = warp_frames_reference(video, fields, motion)
    assert warped.shape == want.shape and warped.dtype == F32
    assert torch.allclose(warped, want, atol=3e-4)


def test_no_motion_is_the_same_bits_and_a_nan_stays_within_the_frame() -> None:
    video, fields = drawn(2, 24, 32, F32, last=False), torch.randn(8, 24, 32, 2)
    with torch.inference_mode():
        assert torch.equal(warp_frames(video, fields, torch.zeros(8, 2)), video)
        for motion in (float("nan"), float("inf"), 1e30):
            assert warp_frames(video, fields, torch.full((8, 2), motion)).shape == video.shape


def test_a_whole_pixel_is_a_copy_and_half_a_pixel_keeps_what_is_fine() -> None:
    """A wave of three pixels, half a pixel on: 0.91 is left of it, where bicubic leaves 0.78."""
    wave_W = torch.sin(torch.arange(48) * 2 * torch.pi / 3)
    video = wave_W.expand(3, 1, 16, 48).clone()
    right = torch.zeros(1, 16, 48, 2)
    right[..., 0] = 2 / 48  # a pixel
    with torch.inference_mode():
        whole, half = (warp_frames(video, right, torch.full((1, 1), much)) for much in (1.0, 0.5))
    assert torch.equal(whole[..., 1:], video[..., :-1])
    want_W = torch.sin((torch.arange(48) - 0.5) * 2 * torch.pi / 3)
    assert (half[0, 0, 8, 4:-4] - want_W[4:-4]).abs().max() < 0.1
    assert torch.allclose(warp_frames_reference(torch.ones(3, 1, 16, 48), right, torch.full((1, 1), 0.3)), torch.ones(3, 1, 16, 48), atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_bits(threads: int) -> None:
    video, fields, motion = drawn(3, 40, 56, BF16, last=True), torch.randn(8, 40, 56, 2), 0.1 * torch.randn(8, 3)
    results = []
    for n in (2, threads):
        warped = torch.empty(3, 40, 56, 3)
        native_cpu().warp_frames(*video_operand(video), fields.data_ptr(), motion.data_ptr(), 8, warped.data_ptr(), n)
        results.append(warped)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("last", [True, False])
def test_bytes_are_the_reference_bit_for_bit(last: bool, dtype: torch.dtype) -> None:
    video = drawn(3, 30, 46, dtype, last=last).clone()
    video[0] = (torch.arange(video[0].numel()) % 256 / 127.5 - 1).view(video[0].shape)
    with torch.inference_mode():
        assert torch.equal(to_rgb(video), to_rgb_reference(video))
