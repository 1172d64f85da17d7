"""The VAEs that are trained here: their sizes, fresh weights, and a deeper encoder grown from a shallower one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from everface.core.config import VAEConfig
from everface.core.errors import BadInput
from everface.networks.video.vae import VAE
from everface.networks.video.vae_layers import CausalConv3d, ResidualBlock, TemporalStride

# The encoder is deeper than the decoder: it runs once a session, the decoder for every frame.
TINY_VAE = VAEConfig(
    dim=16, dim_mult=(1, 2, 4, 6), encoder_blocks=(1, 2, 4, 3), decoder_blocks=(2, 1, 1, 1), mean=(0.0,) * 16, std=(1.0,) * 16
)  # fmt: skip
# Rendered people at 256x256: folded 2x2, so it costs about what TINY_VAE costs at 128x128. A token of the transformer is 32x32 pixels and
# four frames, of which 128 numbers are kept (docs/training/heads.md has the count).
HEADS_VAE = VAEConfig(
    dim=24, z_dim=32, dim_mult=(1, 2, 3, 4), encoder_blocks=(1, 2, 2, 1), decoder_blocks=(1, 1, 1, 1), patch_size=2,
    mean=(0.0,) * 32, std=(1.0,) * 32,
)  # fmt: skip
LARGE_HEADS_VAE = replace(HEADS_VAE, dim=64, dim_mult=(1, 2, 4, 4), encoder_blocks=(1, 2, 2, 2), decoder_blocks=(2, 2, 2, 2))
ENCODER_LAYERS = "encoder.downsamples."


def new_vae(config: VAEConfig) -> VAE:
    """Fresh weights: residual branches near zero, no use of the past, temporal resampling as plain repeat and skip. So what single frames
    teach holds for video from its first step."""
    vae = VAE(config)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResidualBlock):
                module.residual["6"].weight.mul_(0.1)  # type: ignore[index]  a ModuleDict does not type what it holds
            if isinstance(module, CausalConv3d):
                module.weight[:, :, :2] = 0
            if isinstance(module, TemporalStride) or (isinstance(module, CausalConv3d) and module.kernel_size[1] == 1):
                module.weight.zero_()
                eye = torch.eye(module.in_channels).repeat(module.out_channels // module.in_channels, 1)
                module.weight[:, :, 2, 0, 0] = eye
                module.bias.zero_()  # type: ignore[union-attr]  these convolutions have a bias
    return vae


def deepen(held: Mapping[str, torch.Tensor], vae: VAE) -> dict[str, torch.Tensor]:
    """The weights of `held` under their names in `vae`. The encoder of `vae` may have more residual blocks at the end of a level.

    The added blocks begin as identity, so the codec is at first the same. Raises BadInput where `held` has more blocks than `vae`.
    """
    new = vae.state_dict()
    before, now = {place: number for number, place in encoder_layers(held).items()}, encoder_layers(new)
    if surplus := before.keys() - now.values():
        raise BadInput(f"the encoder to start from is deeper than the one to train (by {len(surplus)} layers): it can be deepen, not cut")
    out = {name: held[name] for name in held if not name.startswith(ENCODER_LAYERS)}
    for name, tensor in new.items():
        if name.startswith(ENCODER_LAYERS):
            number, leaf = name.removeprefix(ENCODER_LAYERS).split(".", 1)
            place = now[int(number)]
            if place in before:
                out[name] = held[f"{ENCODER_LAYERS}{before[place]}.{leaf}"]
            else:
                out[name] = torch.zeros_like(tensor) if leaf.startswith("residual.6.") else tensor
    return out


def encoder_layers(names: Iterable[str]) -> dict[int, tuple[int, int]]:
    """Layer number -> (level, number of its residual block); the down-sampling layer that ends a level is (level, -1)."""
    own = [name.removeprefix(ENCODER_LAYERS).split(".", 2) for name in names if name.startswith(ENCODER_LAYERS)]
    strides = {int(number) for number, part, *_ in own if part == "resample"}
    out, level, block = {}, 0, 0
    for number in sorted({int(number) for number, *_ in own}):
        if number in strides:
            out[number], level, block = (level, -1), level + 1, 0
        else:
            out[number], block = (level, block), block + 1
    return out
