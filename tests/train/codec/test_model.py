"""A deeper encoder, or latents of more channels, grown from a trained codec."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everface.core.config import VAEConfig
from everface.core.errors import BadInput
from everface.networks.video.vae import VAE
from everface.train.codec.model import deepen, new_vae, widen
from everface.weights.load import load_into

CONFIG = VAEConfig(dim=4, dim_mult=(1, 2, 2, 2), encoder_blocks=(1, 0, 1, 1), decoder_blocks=(1, 0, 0, 1))


def test_a_deeper_encoder_begins_as_the_one_it_starts_from() -> None:
    torch.manual_seed(5)
    old, deep = VAE(CONFIG), new_vae(replace(CONFIG, encoder_blocks=(2, 0, 3, 2)))
    load_into(deep, deepen(old.state_dict(), deep))
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    z = old.encode(video)
    assert torch.equal(deep.encode(video), z) and torch.equal(deep.decode(z), old.decode(z))
    with pytest.raises(BadInput, match="can be deepen, not cut"):
        deepen(deep.state_dict(), old)
    torch.manual_seed(6)
    for p in deep.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    assert not torch.allclose(deep.encode(video), z, atol=0.1)


def test_a_codec_of_more_channels_begins_as_the_old_one() -> None:
    old = VAE(CONFIG)
    z = CONFIG.z_dim
    wide = new_vae(replace(CONFIG, z_dim=z + 8, mean=(*CONFIG.mean, *[0.0] * 8), std=(*CONFIG.std, *[1.0] * 8)))
    load_into(wide, widen(old.state_dict(), wide))
    video = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        latents, wider = old.encode(video), wide.encode(video)
        assert wider.shape[1] == z + 8 and wider[:, z:].std() > 0
        torch.testing.assert_close(wider[:, :z], latents)
        torch.testing.assert_close(wide.decode(wider), old.decode(latents))
