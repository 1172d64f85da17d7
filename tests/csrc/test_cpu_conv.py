"""everface._native.cpu on a matrix unit: a decoder's convolutions against float64, in every shape, and its streams cut anywhere."""

import pytest
import torch
from torch import Tensor

from everface.core.config import VAEConfig
from everface.kernels.video import causal_conv3d as conv
from everface.kernels.video import packed_conv, upsample_conv
from everface.kernels.video.norm_silu import norm_silu_reference
from everface.networks.video.vae import VAE

BF16 = torch.bfloat16
pytestmark = pytest.mark.usefixtures("amx")
LIMIT = 2.5e-3  # of rounding once: 1.65e-3 in the mean


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(BF16)


def video(channels: int, frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[1, C, T, H, W], channels last in memory."""
    return drawn(1, frames, height, width, channels, seed=seed).movedim(-1, 1)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("space", [3, 1])
@pytest.mark.parametrize(
    ("c_in", "c_out", "frames", "height", "width"),
    [(16, 16, 3, 8, 32), (16, 3, 2, 6, 68), (24, 12, 1, 9, 36), (24, 24, 2, 5, 64), (32, 40, 4, 16, 19), (48, 96, 2, 7, 33), (72, 72, 3, 1, 16),
     (96, 33, 2, 12, 45), (7, 33, 2, 5, 64)],
)
def test_causal_convolutions(c_in: int, c_out: int, frames: int, height: int, width: int, space: int, norm: bool) -> None:
    x, past, residual = (video(c, t, height, width, seed=n) for n, (c, t) in enumerate(((c_in, frames), (c_in, 2), (c_out, frames))))
    weight, bias, gamma = drawn(c_out, c_in, 3, space, space, seed=4), drawn(c_out, seed=5), drawn(c_in, seed=6)
    packed, before = packed_conv.pack_conv(weight), past.clone()
    z = norm_silu_reference(x, gamma) if norm else x
    want = conv.causal_conv3d_reference(z.double(), before.double(), weight.double(), bias.double(), residual.double())
    assert packed_conv.takes(x, past, residual, packed_conv.group_of(weight))
    if norm:
        y, after = conv.norm_silu_conv3d(x, gamma, past, weight, bias, residual, packed)
    else:
        y, after = conv.causal_conv3d(x, past, weight, bias, residual, packed)
    assert y.dtype == BF16 and y.shape == want.shape and error(y, want) < LIMIT
    assert after.data_ptr() == past.data_ptr() and error(past, torch.cat([before, z], 2)[:, :, -2:]) < 1e-3  # a norm's rounding may fall the other way


def test_without_bias_and_residual() -> None:
    x, past, weight = video(32, 3, 8, 32), video(32, 2, 8, 32, seed=1), drawn(48, 32, 3, 3, 3, seed=2)
    want = conv.causal_conv3d_reference(x.double(), past.double(), weight.double(), None)
    assert error(conv.causal_conv3d(x, past, weight, None, None, packed_conv.pack_conv(weight))[0], want) < LIMIT


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize(("c_in", "c_out", "height", "width"), [(32, 16, 8, 32), (96, 48, 5, 16), (24, 20, 1, 35)])
def test_upsampling_convolutions(c_in: int, c_out: int, height: int, width: int, side: int) -> None:
    x, weight, bias = video(side * c_in, 3, height, width), drawn(c_out, c_in, 3, 3, seed=1), drawn(c_out, seed=2)
    want = upsample_conv.upsample_conv_reference(x.double(), weight.double(), bias.double(), side)
    y = upsample_conv.upsample_conv(x, weight, bias, side, packed_conv.pack_upsample(weight))
    torchs = upsample_conv.upsample_conv_folded(x, weight, bias, side)  # its weights are rounded once more as well
    assert y.shape == want.shape and error(y, want) < 1.05 * error(torchs, want)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, weight, gamma, before, out = video(48, 3, 21, 40), drawn(40, 48, 3, 3, 3, seed=1), drawn(48, seed=2), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out.append(conv.norm_silu_conv3d(x, gamma, video(48, 2, 21, 40, seed=3), weight, None, None, packed_conv.pack_conv(weight)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in out[1:] for a, b in zip(out[0], other, strict=True))


def test_a_nan_stays_where_the_taps_are() -> None:
    x, past, weight = video(16, 2, 6, 48), video(16, 2, 6, 48, seed=1), drawn(16, 16, 3, 3, 3, seed=2)
    x[0, 3, 1, 2, 20] = torch.nan
    y, _ = conv.causal_conv3d(x, past, weight, None, None, packed_conv.pack_conv(weight))
    assert y[0, :, 1, 1:4, 19:22].isnan().all() and y[0, :, 0].isfinite().all() and y[0, :, 1, :, 30:].isfinite().all()


def test_a_packed_decoder_is_the_decoder() -> None:
    config = VAEConfig(dim=16, dim_mult=(1, 2, 4, 4), encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1))
    torch.manual_seed(0)
    vae = VAE(config, encoder=False).to(BF16).eval().requires_grad_(False)
    z = drawn(1, 16, 7, 16, 24)
    want, plain = vae.float().decode(z.float()), vae.to(BF16).channels_last().decode(z)
    packed = vae.pack()
    assert all(layer.packed is not None for layer in packed.decoder.modules() if hasattr(layer, "packed"))
    whole = packed.decode(z)
    assert error(whole, want) < 1.1 * error(plain, want) + 1e-3
    stream = packed.stream()
    parts = [packed.decode_stream(z[:, :, a:b], stream) for a, b in ((0, 1), (1, 2), (2, 5), (5, 7))]
    assert torch.equal(torch.cat(parts, 2), whole)


def test_what_it_does_not_take_goes_to_torch() -> None:
    weight, past = drawn(16, 16, 3, 3, 3), video(16, 2, 8, 8, seed=1)
    narrow, packed = video(16, 2, 8, 8), packed_conv.pack_conv(weight)
    assert not packed_conv.takes(narrow, past, None) and not packed_conv.takes(video(16, 2, 8, 16).contiguous(), None, None)
    want = conv.causal_conv3d_reference(narrow.double(), past.double(), weight.double(), None)
    assert error(conv.causal_conv3d(narrow, past, weight, None, None, packed)[0], want) < LIMIT
    assert not packed_conv.packs(weight.float())
