"""Video to bytes: the kernel against its reference bit for bit, RGB as upstream truncates it, NV12 against ffmpeg's conversion."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE

from everface.kernels.video import to_rgb as module

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
MARGIN = 64


def drawn(frames: int, height: int, width: int, dtype: torch.dtype, *, last: bool = True) -> torch.Tensor:
    """[3, T, H, W] that overshoots -1..1, channels last as a decoder leaves it or not, with every value that falls on an edge."""
    g = torch.Generator().manual_seed(height + width)
    x_THW3 = 0.8 * torch.randn(frames, height, width, 3, generator=g)
    edges = torch.arange(256) / 127.5 - 1
    x_THW3.view(-1)[: min(256, x_THW3.numel())] = edges[: x_THW3.numel()]
    video_3THW = x_THW3.permute(3, 0, 1, 2)
    return (video_3THW if last else video_3THW.contiguous()).to(DEVICE, dtype)


def guarded(*size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes with a margin of 77 on either side, and the part between."""
    count = torch.Size(size).numel()
    whole = torch.full((count + 2 * MARGIN,), 77, dtype=torch.uint8, device=DEVICE)
    return whole, whole[MARGIN:-MARGIN].view(size)


def untouched(whole: torch.Tensor) -> bool:
    return bool((whole[:MARGIN] == 77).all() and (whole[-MARGIN:] == 77).all())


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(("size", "last"), [((2, 6, 10), True), ((1, 7, 5), True), ((2, 5, 259), False), ((1, 4, 512), True)])
def test_rgb_is_the_reference_bit_for_bit(size: tuple[int, int, int], last: bool, dtype: torch.dtype) -> None:
    video = drawn(*size, dtype, last=last)
    whole, rgb = guarded(*size, 3)
    module.launch(video, rgb, None)
    assert torch.equal(rgb, module.to_rgb_reference(video)) and untouched(whole)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("size", [(2, 6, 10), (1, 2, 2), (2, 4, 258)])
def test_nv12_is_the_reference_bit_for_bit(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    video = drawn(*size, dtype)
    frames, height, width = size
    whole, nv12 = guarded(frames, height * 3 // 2, width)
    module.launch(video, None, nv12)
    assert torch.equal(nv12, module.to_nv12_reference(video)) and untouched(whole)


def test_ops_and_both_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    video = drawn(2, 4, 6, F32)
    want = module.to_rgb_reference(video), module.to_nv12_reference(video)
    rgb, nv12 = torch.empty_like(want[0]), torch.empty_like(want[1])
    module.launch(video, rgb, nv12)
    assert torch.equal(rgb, want[0]) and torch.equal(nv12, want[1])
    monkeypatch.setattr(module, "runs_triton", lambda *_: True)
    assert torch.equal(module.to_rgb(video), want[0]) and torch.equal(module.to_nv12(video), want[1])


def test_bytes_are_truncated_as_upstream_truncates() -> None:
    x = torch.tensor([-2.0, -1.0, -0.9999, -0.992, 0.0, 0.00393, 0.9999, 1.0, 3.0])
    want = [int(min(max((v + 1) / 2, 0), 1) * 255) for v in x.tolist()]
    assert want == [0, 0, 0, 1, 127, 128, 254, 255, 255]
    assert module.to_rgb(x.expand(3, 1, 1, -1))[0, 0, :, 1].tolist() == want


def test_known_colors_in_nv12() -> None:
    """White, black, red, blue of BT.709, limited range, as tables give them."""
    for rgb, yuv in (
        ((1, 1, 1), (235, 128, 128)),
        ((-1, -1, -1), (16, 128, 128)),
        ((1, -1, -1), (63, 102, 240)),
        ((-1, -1, 1), (32, 240, 118)),
    ):
        nv12 = module.to_nv12(torch.tensor(rgb, dtype=F32).view(3, 1, 1, 1).expand(3, 1, 2, 2))[0]
        assert nv12[0].unique().tolist() == [yuv[0]] and nv12[2].tolist() == list(yuv[1:])


def test_nv12_is_what_ffmpeg_makes_of_the_rgb() -> None:
    """Within one level: ffmpeg rounds its weights to 15 bits."""
    av = pytest.importorskip("av")
    g = torch.Generator().manual_seed(1)
    coarse = 2 * torch.rand(1, 3, 8, 12, generator=g) - 1
    video = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")[0][:, None]
    frame = av.VideoFrame.from_ndarray(module.to_rgb_reference(video)[0].numpy(), format="rgb24")
    ranges = {"src_color_range": "JPEG", "dst_color_range": "MPEG"}
    made = frame.reformat(format="nv12", src_colorspace="ITU709", dst_colorspace="ITU709", interpolation="AREA", **ranges)
    off = (module.to_nv12_reference(video)[0].int() - torch.from_numpy(made.to_ndarray()).int()).abs()
    assert off.max() <= 1 and off.float().mean() < 0.1


def test_odd_sides_have_no_nv12() -> None:
    with pytest.raises(ValueError, match="6x5 is odd"):
        module.to_nv12(drawn(1, 6, 5, F32))
