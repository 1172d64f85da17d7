"""A deeper encoder grown from a shallower one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everface.core.config import VAEConfig
from everface.core.errors import BadInput
from everface.networks.video.vae import VAE
from everface.train.codec.model import deepen, new_vae
from everface.weights.load import load_into


def test_a_deeper_encoder_begins_as_the_one_it_starts_from() -> None:
    config = VAEConfig(dim=4, dim_mult=(1, 2, 2, 2), encoder_blocks=(1, 0, 1, 1), decoder_blocks=(1, 0, 0, 1))
    torch.manual_seed(5)
    old, deep = VAE(config), new_vae(replace(config, encoder_blocks=(2, 0, 3, 2)))
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
