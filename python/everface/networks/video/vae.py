"""The Wan 2.1 video VAE, whole or as a stream: 1 + 4k frames of H x W pixels <-> 1 + k latent frames of H/8 x W/8, 16 channels.

With a patch_size of 2 the frames are folded 2x2 before the encoder and unfolded after the decoder: H/16 x W/16.

Keys of the state dict are the official ones. The per-channel latent mean and std come from the configuration, not from the weights.
Video values are in -1..1. In float32 neither the cut of a stream into calls nor the batch changes the result (to 1e-5).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everface.core.config import VAEConfig
from everface.core.errors import BadInput, BadWeights
from everface.kernels.launch import launching_on
from everface.networks.video.vae_layers import (
    CHANNELS_LAST,
    CausalConv3d,
    Downsample,
    FrameAttention,
    OutputHead,
    Pointwise,
    ResidualBlock,
    Upsample,
    VAEStream,
    assign_slots,
    patchify,
    unpatchify,
)

__all__ = ["VAE", "VAEStream"]


class Encoder(nn.Module):
    """Patched frames -> mean and log-variance [B, 2z, T', H/8, W/8]. A level without blocks keeps the width it is given."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        width = config.dim * config.dim_mult[0]
        self.conv1 = CausalConv3d(config.pixel_values, width)
        self.downsamples = nn.ModuleList()
        for level, (mult, blocks) in enumerate(zip(config.dim_mult, config.encoder_blocks)):
            for _ in range(blocks):
                self.downsamples.append(ResidualBlock(width, config.dim * mult))
                width = config.dim * mult
            if level < len(config.dim_mult) - 1:
                self.downsamples.append(Downsample(width, config.temperal_downsample[level]))
        self.middle = nn.ModuleList([ResidualBlock(width, width), FrameAttention(width), ResidualBlock(width, width)])
        self.head = OutputHead(width, 2 * config.z_dim)
        self.slots = assign_slots(self)

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:
        x_BCTHW = self.conv1(x_BCTHW, stream)
        for layer in (*self.downsamples, *self.middle, self.head):
            x_BCTHW = layer(x_BCTHW, stream)
        stream.first = False
        return x_BCTHW


class Decoder(nn.Module):
    """Latents [B, z, T', h, w] -> patched frames [B, 3 or 12, T, 8h, 8w]. Each upsampling halves the width, independent of the next level's."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        width = config.dim * config.dim_mult[-1]
        self.conv1 = CausalConv3d(config.z_dim, width)
        self.middle = nn.ModuleList([ResidualBlock(width, width), FrameAttention(width), ResidualBlock(width, width)])
        self.upsamples = nn.ModuleList()
        temporal = config.temperal_downsample[::-1]
        for level, (mult, blocks) in enumerate(zip(config.dim_mult[::-1], config.decoder_blocks)):
            for _ in range(blocks):
                self.upsamples.append(ResidualBlock(width, config.dim * mult))
                width = config.dim * mult
            if level < len(config.dim_mult) - 1:
                self.upsamples.append(Upsample(width, temporal[level]))
                width //= 2
        self.head = OutputHead(width, config.pixel_values)
        self.slots = assign_slots(self)

    def forward(self, x_BCTHW: Tensor, stream: VAEStream) -> Tensor:
        x_BCTHW = self.conv1(x_BCTHW, stream)
        for layer in (*self.middle, *self.upsamples, self.head):
            x_BCTHW = layer(x_BCTHW, stream)
        stream.first = False
        return x_BCTHW


class VAE(nn.Module):
    """Encoder and decoder, or one of them: a device builds only the one it runs."""

    mean_C111: Tensor
    std_C111: Tensor

    def __init__(self, config: VAEConfig, *, encoder: bool = True, decoder: bool = True) -> None:
        """Raises BadWeights when the lists of the configuration do not fit together."""
        super().__init__()
        levels = len(config.dim_mult)
        lengths = (len(config.encoder_blocks), len(config.decoder_blocks), len(config.temperal_downsample) + 1)
        if set(lengths) != {levels} or {len(config.mean), len(config.std)} != {config.z_dim}:
            raise BadWeights(
                f"this VAE configuration does not fit together: {levels} levels, {config.z_dim} latent channels, {config}"
            )
        self.config = config
        self.stride_t, self.stride_s, _ = config.stride
        if encoder:
            self.encoder = Encoder(config)
            self.conv1 = Pointwise(2 * config.z_dim, 2 * config.z_dim)
        if decoder:
            self.conv2 = Pointwise(config.z_dim, config.z_dim)
            self.decoder = Decoder(config)
        self.register_buffer("mean_C111", torch.tensor(config.mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std_C111", torch.tensor(config.std).view(-1, 1, 1, 1), persistent=False)
        self.channels_last()

    def channels_last(self) -> VAE:
        """Lay the weights out for speed. `load_state_dict` keeps the layout; call this again only after loading with `assign=True`."""
        for p in self.parameters():
            if p.dim() in CHANNELS_LAST:
                p.data = p.data.contiguous(memory_format=CHANNELS_LAST[p.dim()])
        return self

    def pack(self) -> VAE:
        """Pack the decoder's weights, which stay as they are from now on, for a CPU's matrix unit where there is one."""
        for layer in self.decoder.modules():
            if isinstance(layer, CausalConv3d | Upsample):
                layer.pack()
        return self

    def encode(self, video_B3THW: Tensor) -> Tensor:
        """Normalized mean latents [B, z, 1 + k, H/stride, W/stride] of 1 + 4k frames. Differentiable. Raises BadInput on sizes that do not divide."""
        batch, _, frames, height, width = video_B3THW.shape
        if (frames - 1) % self.stride_t or height % self.stride_s or width % self.stride_s:
            raise BadInput(
                f"{frames} frames of {height}x{width} cannot be encoded: "
                f"give 1 + {self.stride_t}k frames whose sides are multiples of {self.stride_s}"
            )
        stream = VAEStream(batch, [None] * self.encoder.slots)
        video_BCTHW = patchify(video_B3THW, self.config.patch_size).contiguous(memory_format=torch.channels_last_3d)
        parts = split_first(video_BCTHW)
        if not torch.is_grad_enabled():  # the cut does not matter: five latents' frames stay near a CPU's cache, one latent's fill a GPU
            latents = 1 if video_BCTHW.is_cuda else 5
            parts = [piece for part in parts for piece in part.split(latents * self.stride_t, 2)]
        with launching_on(video_BCTHW.device):
            parts = [self.encoder(part, stream) for part in parts]
        mean_BCthw = self.conv1(torch.cat(parts, 2))[:, : self.config.z_dim]
        return (mean_BCthw - self.mean_C111) / self.std_C111

    def decode(self, z_BCthw: Tensor) -> Tensor:
        """Frames [B, 3, 1 + 4k, H, W] of 1 + k normalized latents, not clamped. Differentiable."""
        return self.decode_stream(z_BCthw, self.stream(z_BCthw.shape[0]))

    def stream(self, batch: int = 1) -> VAEStream:
        """The state of a decoder before its first latent."""
        return VAEStream(batch, [None] * self.decoder.slots)

    def warm_up(self, z_BCthw: Tensor) -> VAEStream:
        """The state after decoding these latents, with their frames thrown away: the still image before a stream begins."""
        stream = self.stream(z_BCthw.shape[0])
        self.decode_stream(z_BCthw, stream)
        return stream

    def decode_stream(self, z_BCthw: Tensor, stream: VAEStream) -> Tensor:
        """The next frames of a stream, and its state advances: four per latent, but one for the very first. Not clamped.

        How many latents come in one call does not change the result.
        """
        if z_BCthw.shape[0] != stream.batch:
            raise BadInput(f"this stream holds {stream.batch} videos, not {z_BCthw.shape[0]}: open another with VAE.stream")
        z_BCthw = self.conv2((z_BCthw * self.std_C111 + self.mean_C111).to(z_BCthw.dtype))
        z_BCthw = z_BCthw.contiguous(memory_format=torch.channels_last_3d)
        parts = split_first(z_BCthw) if stream.first else [z_BCthw]
        frames = [self.decoder(part, stream) for part in parts]
        return unpatchify(frames[0] if len(frames) == 1 else torch.cat(frames, 2), self.config.patch_size)


def split_first(x_BCTHW: Tensor) -> list[Tensor]:
    """The first frame alone, then all the others, if there are any."""
    return [part for part in (x_BCTHW[:, :, :1], x_BCTHW[:, :, 1:]) if part.shape[2]]
