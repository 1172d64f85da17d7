"""The layers of the Wan 2.1 video VAE: causal in time, so that a stream may be cut into calls anywhere.

Every tensor is channels first in shape and channels last in memory, several times faster for convolutions. Everything that touches whole
frames is an op of kernels/video: plain torch on a CPU, fused kernels on a GPU. A convolution of three taps in time needs its two previous
input frames, which its slot of a `VAEStream` keeps.
Attribute names are those of the official checkpoint ("residual.2", "resample.1", "to_qkv").
Legend: Batch, Channel, Time, Height, Width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everface.kernels.video.causal_conv3d import causal_conv3d, norm_silu_conv3d
from everface.kernels.video.norm_silu import rms_norm_channels
from everface.kernels.video.packed_conv import pack_conv, pack_upsample, packs
from everface.kernels.video.upsample_conv import upsample_conv

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass
class VAEStream:
    """State of one stream: the past frames of each causal convolution, in the order of execution.

    `caches[i]`: the last two input frames of convolution i [B, C, 2, H, W] (zeros before the stream began), the last one frame
    for a temporal down-sampling, None before the first frame. Each is written in place once it is there, so that its address
    holds for the life of the stream and a captured decode finds it; only where gradients flow through it is it replaced.
    """

    batch: int
    caches: list[Tensor | None] = field(default_factory=list)
    first: bool = True  # the first frame is still to come: it is alone, temporal re-sampling skips it


class Gamma(nn.Module):
    """The one parameter of a norm, in the shape of the checkpoint: [C, 1, 1, 1] or [C, 1, 1]."""

    def __init__(self, channels: int, ones: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * ones))


class CausalConv3d(nn.Conv3d):
    """Three taps in time that end at the present, k x k in space with zero padding.

    out[t] = sum_i W[i] x[t - 2 + i]; frames before the stream are zero. Keeps its last two input frames in `caches[slot]`.
    """

    slot: int
    packed: Tensor | None = None  # the weight for a CPU's matrix unit

    def __init__(self, c_in: int, c_out: int, space: int = 3) -> None:
        super().__init__(c_in, c_out, (3, space, space), padding=(0, space // 2, space // 2))

    def pack(self) -> None:
        """Pack the weight, which stays as it is from now on, if this machine has a matrix unit for it."""
        self.packed = pack_conv(self.weight) if packs(self.weight) else None

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  has state
        y_BCTHW, stream.caches[self.slot] = causal_conv3d(
            x_BCTHW, stream.caches[self.slot], self.weight, self.bias, packed=self.packed
        )
        return y_BCTHW


def norm_silu_conv(
    layers: nn.ModuleDict, norm: str, conv: str, x_BCTHW: Tensor, stream: VAEStream, residual_BCTHW: Tensor | None = None
) -> Tensor:  # fmt: skip
    """conv(SiLU(norm(x))) [+ residual], by two layers of these names."""
    gamma, causal = layers[norm], layers[conv]
    assert isinstance(gamma, Gamma) and isinstance(causal, CausalConv3d)
    past = stream.caches[causal.slot]
    y_BCTHW, stream.caches[causal.slot] = norm_silu_conv3d(
        x_BCTHW, gamma.gamma, past, causal.weight, causal.bias, residual_BCTHW, causal.packed
    )
    return y_BCTHW


def keep(frames: Tensor) -> Tensor:
    """A copy, so that the large tensor it was cut from can be freed; under autograd that tensor stays anyway."""
    return frames if frames.requires_grad else frames.clone()


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution, computed as a linear layer over the last dimension in memory."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same with c_out channels."""
        return F.linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """x -> shortcut(x) + conv(SiLU(norm(conv(SiLU(norm(x))))))."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {"0": Gamma(c_in), "2": CausalConv3d(c_in, c_out), "3": Gamma(c_out), "6": CausalConv3d(c_out, c_out)}
        )
        self.shortcut = Pointwise(c_in, c_out) if c_in != c_out else nn.Identity()

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:
        h_BCTHW = norm_silu_conv(self.residual, "0", "2", x_BCTHW, stream)
        return norm_silu_conv(self.residual, "3", "6", h_BCTHW, stream, self.shortcut(x_BCTHW))


class FrameAttention(nn.Module):
    """x -> x + proj(attention(norm(x))), one head over the H*W positions of each frame by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Gamma(channels, ones=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:
        x_NCHW = to_frames(x_BCTHW)
        qkv_NCHW = self.to_qkv(rms_norm_channels(x_NCHW, self.norm.gamma))
        q_NPC, k_NPC, v_NPC = qkv_NCHW.permute(0, 2, 3, 1).flatten(1, 2).chunk(3, -1)
        # With heads, of which there is one: without, no fused kernel takes it, and torch computes and keeps all scores in float32.
        y_NPC = F.scaled_dot_product_attention(q_NPC[:, None], k_NPC[:, None], v_NPC[:, None])[:, 0]
        y_NCHW = y_NPC.unflatten(1, x_NCHW.shape[2:]).permute(0, 3, 1, 2)
        return to_video(x_NCHW + self.proj(y_NCHW), x_BCTHW.shape[0])


class Downsample(nn.Module):
    """Half the size: zero row below and column to the right, 3x3 convolution of stride 2. If temporal, half the frames as well.

    The first frame of a stream skips the temporal convolution; later frames 2k see the frame before them: three taps, stride 2.
    """

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = TemporalStride(channels) if temporal else None

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:
        x_NCHW = F.pad(to_frames(x_BCTHW), (0, 1, 0, 1))
        x_BCTHW = to_video(self.resample["1"](x_NCHW), x_BCTHW.shape[0])
        return self.time_conv(x_BCTHW, stream) if self.time_conv else x_BCTHW


class TemporalStride(nn.Conv3d):
    """Two frames to one: three taps, stride 2, over the kept last frame and the new ones. The first frame passes unchanged."""

    slot: int

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  has state
        past, stream.caches[self.slot] = stream.caches[self.slot], keep(x_BCTHW[:, :, -1:])
        return x_BCTHW if past is None else super().forward(torch.cat([past.to(x_BCTHW.dtype), x_BCTHW], 2))


class Upsample(nn.Module):
    """Twice the size (nearest) and a 3x3 convolution that halves the channels. If temporal, a causal convolution to 2C channels comes
    first: its halves are the earlier and the later frame. The first latent of a stream skips it, stays one frame and is not kept."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.time_conv = CausalConv3d(channels, 2 * channels, space=1) if temporal else None
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.packed: Tensor | None = None  # the weight for a CPU's matrix unit

    def pack(self) -> None:
        """As CausalConv3d.pack, of the convolution in space."""
        weight = self.resample["1"].weight
        assert isinstance(weight, Tensor)
        self.packed = pack_upsample(weight) if packs(weight) else None

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:
        time_conv = None if stream.first else self.time_conv
        if time_conv is not None:
            x_BCTHW = time_conv(x_BCTHW, stream)
        conv = self.resample["1"]
        assert isinstance(conv, nn.Conv2d)
        return upsample_conv(x_BCTHW, conv.weight, conv.bias, 1 if time_conv is None else 2, self.packed)


class OutputHead(nn.ModuleDict):
    """conv(SiLU(norm(x)))."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__({"0": Gamma(c_in), "2": CausalConv3d(c_in, c_out)})

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:
        return norm_silu_conv(self, "0", "2", x_BCTHW, stream)


def to_frames(x_BCTHW: Tensor) -> Tensor:
    """[B*T, C, H, W], a view of a channels-last tensor."""
    return x_BCTHW.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def to_video(x_NCHW: Tensor, batch: int) -> Tensor:
    """[batch, C, N / batch, H, W], a view of a channels-last tensor."""
    return x_NCHW.permute(0, 2, 3, 1).unflatten(0, (batch, -1)).permute(0, 4, 1, 2, 3)


def patchify(x_BCTHW: Tensor, size: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C size^2, T, H / size, W / size]: pixels of a square become channels, in Wan 2.2's order, columns outermost."""
    if size == 1:
        return x_BCTHW
    x = x_BCTHW.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # B C T h q w r
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x_BCTHW: Tensor, size: int) -> Tensor:
    """The inverse of patchify."""
    if size == 1:
        return x_BCTHW
    x = x_BCTHW.unflatten(1, (-1, size, size))  # B C r q T h w
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def assign_slots(module: nn.Module) -> int:
    """Number the layers with state, in the order in which they were built, which is the order of execution. Returns their count."""
    layers = [m for m in module.modules() if isinstance(m, CausalConv3d | TemporalStride)]
    for slot, layer in enumerate(layers):
        layer.slot = slot
    return len(layers)
