"""The ops of the VAE's decoder, each beside its alternatives: cuDNN over channels last for the convolutions, plain torch for the rest.

    python -m pytest bench/kernels/bench_video.py

The sizes of a block of three latents at 704x384 on a GPU; tiny ones on a CPU, where the op is the reference. `torch` does all
that the op does, copies included; `cudnn` is the convolution alone, over an input that has been joined to its past before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench.peaks import device
from bench.timing import SETS, implementation, measure

from everface.kernels.launch import Cost
from everface.kernels.video import causal_conv3d as conv
from everface.kernels.video import norm_silu as norm
from everface.kernels.video import to_rgb as rgb
from everface.kernels.video import upsample_conv as up

ON_GPU = torch.cuda.is_available()
ROWS, COLS = (48, 88) if ON_GPU else (2, 3)
BF16 = torch.bfloat16
Conv = tuple[int, int, int, int, int]  # frames, times the latent's size, CI, CO, taps in space

CONVS: dict[str, Conv] = {
    "first": (3, 1, 16, 384, 3),
    "latent": (3, 1, 384, 384, 3),
    "in time": (6, 2, 384, 768, 1),
    "double": (6, 2, 384, 384, 3),
    "fourfold": (12, 4, 192, 192, 3),
    "full": (12, 8, 96, 96, 3),
    "head": (12, 8, 96, 3, 3),
}
UPSAMPLES: dict[str, tuple[int, int, int, int]] = {
    "to double": (3, 1, 384, 2),
    "to fourfold": (6, 2, 384, 2),
    "to full": (12, 4, 192, 1),
}
BY = pytest.mark.parametrize("by", ["op", "torch", "torch.compile"])


@pytest.fixture(autouse=True)
def cudnn_at_its_best() -> Iterator[None]:
    """cuDNN may try all its algorithms at its first call."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        yield


def channels(c: int) -> int:
    return c if ON_GPU or c < 16 else c // 6


def made(*size: int, scale: float = 1.0) -> torch.Tensor:
    """Given as memory is, [.., C]; channels first and channels last."""
    return (scale * torch.randn(size, device=device())).to(BF16).movedim(-1, 1)


def moved(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("by", ["op", "torch", "cudnn"])
@pytest.mark.parametrize("site", CONVS)
def test_causal_conv3d(benchmark: Any, site: str, by: str) -> None:
    frames, times, c_in, c_out, space = CONVS[site]
    c_in, c_out, h, w = channels(c_in), channels(c_out), times * ROWS, times * COLS
    weight, bias = made(c_out, 3, space, space, c_in, scale=(3 * space**2 * c_in) ** -0.5), made(1, c_out)[0]
    sets = [(made(1, frames, h, w, c_in), made(1, 2, h, w, c_in)) for _ in range(SETS)]
    padding = [0, space // 2, space // 2]

    def reference(x: torch.Tensor, past: torch.Tensor) -> object:
        y = conv.causal_conv3d_reference(x, past, weight, bias)
        return y, conv.next_past(x, past)

    if by == "op":
        calls = [lambda x=x, past=past: conv.causal_conv3d(x, past, weight, bias) for x, past in sets]
    elif by == "torch":
        calls = [lambda x=x, past=past: reference(x, past) for x, past in sets]
    else:
        joined = [torch.cat([past, x], 2) for x, past in sets]
        calls = [lambda z=z: F.conv3d(z, weight, bias, 1, padding) for z in joined]
    outputs = frames * h * w * c_out
    cost = Cost(2 * outputs * 3 * space**2 * c_in, moved(*sets[0], sets[0][1], weight) + 2 * outputs)
    measure(benchmark, calls, cost, shape=f"{frames}x{h}x{w}x{c_in}>{c_out}", site=site, by=by)


@BY
@pytest.mark.parametrize("site", UPSAMPLES)
def test_upsample_conv(benchmark: Any, site: str, by: str) -> None:
    frames, times, c_in, side = UPSAMPLES[site]
    c_in, h, w = channels(c_in), times * ROWS, times * COLS
    c_out = c_in // 2
    weight, bias = made(c_out, 3, 3, c_in, scale=(9 * c_in) ** -0.5), made(1, c_out)[0]
    sets = [made(1, frames, h, w, side * c_in) for _ in range(SETS)]
    run = implementation(by, up.upsample_conv, up.upsample_conv_reference)
    outputs = side * frames * 4 * h * w * c_out
    cost = Cost(2 * outputs * 9 * c_in, moved(sets[0], weight) + 2 * outputs)
    calls = [lambda x=x: run(x, weight, bias, side) for x in sets]
    measure(benchmark, calls, cost, shape=f"{side}x{frames}x{h}x{w}x{c_in}>{c_out}", site=site, by=by)


@BY
@pytest.mark.parametrize("site", ["double", "fourfold", "full"])
def test_norm_silu(benchmark: Any, site: str, by: str) -> None:
    frames, times, c, _, _ = CONVS[site]
    c, h, w = channels(c), times * ROWS, times * COLS
    gamma, sets = made(1, c)[0], [made(1, frames, h, w, c) for _ in range(SETS)]
    run = implementation(by, norm.norm_silu, norm.norm_silu_reference)
    calls = [lambda x=x: run(x, gamma) for x in sets]
    measure(benchmark, calls, Cost(0, 2 * moved(sets[0])), shape=f"{frames}x{h}x{w}x{c}", site=site, by=by)


@BY
@pytest.mark.parametrize("out", ["rgb", "nv12"])
def test_to_rgb(benchmark: Any, out: str, by: str) -> None:
    frames, h, w = 12, 8 * ROWS, 8 * COLS
    sets = [made(1, frames, h, w, 3)[0] for _ in range(SETS)]
    ops = {"rgb": (rgb.to_rgb, rgb.to_rgb_reference), "nv12": (rgb.to_nv12, rgb.to_nv12_reference)}
    run = implementation(by, *ops[out])
    bytes_out = frames * h * w * (3 if out == "rgb" else 1.5)
    calls = [lambda x=x: run(x) for x in sets]
    measure(benchmark, calls, Cost(0, moved(sets[0]) + int(bytes_out)), shape=f"{frames}x{h}x{w}", out=out, by=by)
