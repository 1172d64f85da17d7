"""The causal audio encoder against golden data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.networks.audio.causal_encoder import PAST_FRAMES, CausalAudioEncoder

GOLDEN = Path(__file__).parents[1] / "golden"
PREFIX = "w.casual_audio_encoder."


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "audio_encoder_injector.safetensors")


@pytest.fixture(scope="module")
def encoder(golden: dict[str, torch.Tensor]) -> CausalAudioEncoder:
    encoder = CausalAudioEncoder(dim=128, audio_dim=20, layers=25, num_audio_token=4)
    encoder.load_state_dict({k.removeprefix(PREFIX): v for k, v in golden.items() if k.startswith(PREFIX)}, strict=True)
    return encoder.requires_grad_(False)


def test_raw_window(golden: dict[str, torch.Tensor], encoder: CausalAudioEncoder) -> None:
    case = "len5"
    local_BFKD, global_BFD = encoder(golden[f"{case}.input"][None])
    torch.testing.assert_close(local_BFKD[0], golden[f"{case}.local"], atol=2e-5, rtol=0)
    torch.testing.assert_close(global_BFD[0], golden[f"{case}.global"][:, 0], atol=2e-5, rtol=0)


def test_long_prefix_is_the_official_call(golden: dict[str, torch.Tensor], encoder: CausalAudioEncoder) -> None:
    block_LCT = golden["block12.input"]
    window_LCT = torch.cat([block_LCT[..., :1].expand(-1, -1, 73), block_LCT], -1)
    local_BFKD, global_BFD = encoder(window_LCT[None])
    torch.testing.assert_close(local_BFKD[0], golden["block12.local"], atol=2e-5, rtol=0)
    torch.testing.assert_close(global_BFD[0], golden["block12.global"][:, 0], atol=2e-5, rtol=0)


def test_prefix_of_five_equals_prefix_of_73(golden: dict[str, torch.Tensor], encoder: CausalAudioEncoder) -> None:
    local_FKD, global_FD = encoder.encode_block(golden["block12.input"])
    torch.testing.assert_close(local_FKD, golden["block12.local_used"], atol=2e-5, rtol=0)
    torch.testing.assert_close(global_FD, golden["block12.global_used"][:, 0], atol=2e-5, rtol=0)


def test_real_past_equals_one_long_window(encoder: CausalAudioEncoder) -> None:
    """Block by block with 5 real past frames is the same as all blocks in one call, and as a window with a much longer past."""
    features_LCT = torch.randn(25, 20, 73 + 4 * 12, generator=torch.Generator().manual_seed(1))
    local_BFKD, global_BFD = encoder.encode_blocks(features_LCT[None, ..., 73 - PAST_FRAMES :])
    far_BFKD, far_BFD = encoder(features_LCT[None])
    assert local_BFKD.shape == (1, 12, 5, 128) and global_BFD.shape == (1, 12, 128)
    torch.testing.assert_close(local_BFKD, far_BFKD[:, 19:], atol=1e-5, rtol=0)
    torch.testing.assert_close(global_BFD, far_BFD[:, 19:], atol=1e-5, rtol=0)
    for block in range(4):
        t = 73 + 12 * block
        local_FKD, global_FD = encoder.encode_block(features_LCT[..., t : t + 12], features_LCT[..., t - PAST_FRAMES : t])
        torch.testing.assert_close(local_FKD, local_BFKD[0, 3 * block : 3 * block + 3], atol=1e-5, rtol=0)
        torch.testing.assert_close(global_FD, global_BFD[0, 3 * block : 3 * block + 3], atol=1e-5, rtol=0)


def test_receptive_field(encoder: CausalAudioEncoder) -> None:
    """Latent frame j depends on exactly the block's video frames 4j-5..4j+3."""
    features_BLCT = torch.randn(1, 25, 20, PAST_FRAMES + 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
    local_BFKD, global_BFD = encoder.encode_blocks(features_BLCT)
    for j in range(3):
        for out_BFx in (local_BFKD, global_BFD):
            (grad_BLCT,) = torch.autograd.grad(out_BFx[:, j].square().sum(), features_BLCT, retain_graph=True)
            seen = grad_BLCT.abs().amax((0, 1, 2)).nonzero().flatten() - PAST_FRAMES
            assert seen.tolist() == list(range(4 * j - 5, 4 * j + 4))


def test_batched_trainable_and_float32_from_bfloat16_weights(encoder: CausalAudioEncoder) -> None:
    fresh = CausalAudioEncoder(dim=32, audio_dim=8, layers=1, num_audio_token=2)
    features_BLCT = torch.randn(3, 1, 8, PAST_FRAMES + 24, generator=torch.Generator().manual_seed(3))
    local_BFKD, global_BFD = fresh.encode_blocks(features_BLCT)
    assert local_BFKD.shape == (3, 6, 3, 32) and global_BFD.shape == (3, 6, 32)
    alone_BFKD, alone_BFD = fresh.encode_blocks(features_BLCT[1:2])
    torch.testing.assert_close(local_BFKD[1:2], alone_BFKD)
    torch.testing.assert_close(global_BFD[1:2], alone_BFD)
    (local_BFKD.square().sum() + global_BFD.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fresh.parameters())
    half = CausalAudioEncoder(dim=32, audio_dim=8, layers=1, num_audio_token=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = half(features_BLCT.bfloat16())
    assert out[0].dtype == out[1].dtype == torch.float32
