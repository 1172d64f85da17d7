"""Counts against the models themselves, on the meta device, and against what is known of the release."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everface.core.config import DiTConfig, VAEConfig
from everface.networks.sizes import decoder_sizes, dit_bytes, dit_parameters, encoder_sizes, ring_values, sink_values, text_bytes
from everface.networks.transformer.dit import DiT
from everface.networks.video.vae import VAE, VAEStream
from everface.weights.quantize import quantize_for_dtype, quantized_names

TINY = DiTConfig(
    dim=48, ffn_dim=80, freq_dim=20, in_dim=6, out_dim=5, num_heads=4, num_layers=3, text_dim=12, text_len=7, cond_dim=9,
    audio_dim=10, num_audio_token=2, audio_inject_layers=(0, 2), wav2vec_layers=3,
)  # fmt: skip
SMALL = VAEConfig(8, 3, (1, 2, 2), (False, True), (1, 1, 0), (1, 2, 3), (0.0,) * 3, (1.0,) * 3)
VAES = [VAEConfig(), SMALL, replace(SMALL, patch_size=2)]


@pytest.mark.parametrize("cfg", [DiTConfig(), TINY, replace(TINY, patch_size=(1, 1, 1))], ids=["14B", "tiny", "a token a cell"])
def test_parameters_of_the_transformer(cfg: DiTConfig) -> None:
    with torch.device("meta"):
        dit = DiT(cfg)
    quantized = sum(dit.get_parameter(f"{name}.weight").numel() for name in quantized_names(dit))
    assert dit_parameters(cfg) == (quantized, sum(p.numel() for p in dit.parameters()) - quantized)
    cache = dit.new_cache(48, 88, torch.bfloat16, "meta")
    assert ring_values(cfg, 48, 88) == cache.k_LNHd.numel() + cache.v_LNHd.numel()
    text = 2 * cfg.num_layers * cfg.text_len * cfg.dim
    assert sink_values(cfg, 48, 88) == cache.sink_k_LCHd.numel() + text


def test_the_release() -> None:
    assert sum(dit_parameters(DiTConfig())) == 16_295_755_609  # and so many the checkpoint holds
    assert round(dit_bytes(DiTConfig(), quantized=False) / 1e9, 2) == 32.59
    assert round(dit_bytes(DiTConfig(), quantized=True) / 1e9, 2) == 20.02
    assert round(2 * decoder_sizes(VAEConfig(), 48, 88)[1] / 1e9, 2) == 1.28


@pytest.mark.parametrize("cfg", [DiTConfig(), TINY, replace(TINY, patch_size=(1, 1, 1))], ids=["14B", "tiny", "a token a cell"])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_bytes_of_a_model_for_inference(cfg: DiTConfig, dtype: str) -> None:
    with torch.device("meta"), torch.no_grad():
        dit = DiT(cfg).bfloat16().fuse()
        quantize_for_dtype(dit, dtype)
    assert dit_bytes(cfg, dtype == "fp8") == sum(t.numel() * t.element_size() for t in dit.state_dict().values())
    text = [block.get_submodule(f"cross_attn.{leaf}") for block in dit.blocks for leaf in "kv"]
    assert text_bytes(cfg) == sum(t.numel() * t.element_size() for layer in text for t in layer.state_dict().values())


@pytest.mark.parametrize("cfg", VAES, ids=["Wan 2.1", "tiny", "patched"])
def test_parameters_of_the_encoder(cfg: VAEConfig) -> None:
    with torch.device("meta"):
        vae = VAE(cfg, decoder=False)
    assert encoder_sizes(cfg, 2, 3)[0] == sum(p.numel() for p in vae.parameters())


@pytest.mark.parametrize("cfg", VAES, ids=["Wan 2.1", "tiny", "patched"])
def test_parameters_of_the_decoder(cfg: VAEConfig) -> None:
    with torch.device("meta"):
        vae = VAE(cfg, encoder=False)
    assert decoder_sizes(cfg, 2, 3)[0] == sum(p.numel() for p in vae.parameters())


def test_memory_of_a_decoders_stream() -> None:
    cfg = VAES[1]
    vae = VAE(cfg, encoder=False)
    stream = vae.stream()
    with torch.inference_mode():
        for _ in range(2):
            vae.decode_stream(torch.randn(1, cfg.z_dim, 3, 2, 3), stream)
    kept = [cache for cache in stream.caches if cache is not None]
    assert len(kept) == len(stream.caches) and decoder_sizes(cfg, 2, 3)[1] == sum(cache.numel() for cache in kept)


def test_memory_of_an_encoders_stream() -> None:
    cfg = VAES[1]
    vae = VAE(cfg, decoder=False)
    stream = VAEStream(1, [None] * vae.encoder.slots)
    with torch.inference_mode():
        for frames in (1, vae.stride_t, vae.stride_t):
            vae.encoder(torch.randn(1, 3, frames, 8, 12), stream)
    kept = [cache for cache in stream.caches if cache is not None]
    assert len(kept) == len(stream.caches) and encoder_sizes(cfg, 2, 3)[1] == sum(cache.numel() for cache in kept)
