"""The video VAE against golden data, as a whole and as a stream."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from everface.core.config import Deployment, VAEConfig
from everface.core.errors import BadInput, BadWeights
from everface.kernels.video.causal_conv3d import conv3d_by_frames, cpu_dtypes
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, build_decoder, decoder_dtype
from everface.networks.video.vae import VAE
from everface.networks.video.vae_layers import patchify, unpatchify

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = VAEConfig(dim=8, dim_mult=(1, 2, 4, 8), encoder_blocks=(0, 1, 0, 1), decoder_blocks=(1, 0, 1, 0))


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vae_io.safetensors")


@pytest.fixture(scope="module")
def vae() -> VAE:
    path = GOLDEN / "vae_weights.safetensors"
    with safe_open(path, "pt") as file:
        config = VAEConfig.from_dict(json.loads(file.metadata()["config"]))
    vae = VAE(config)
    vae.load_state_dict(load_file(path))  # strict: all 194 official names, no other
    return vae.eval().requires_grad_(False)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max().item() < tolerance


def varied(config: VAEConfig, **parts: bool) -> VAE:
    """Random weights that make every path count: biases and gammas are not at their neutral start."""
    torch.manual_seed(0)
    vae = VAE(config, **parts)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return vae


@pytest.mark.parametrize("case", ["image", "clip9", "static5"])
def test_encode_is_official(vae: VAE, io: dict[str, torch.Tensor], case: str) -> None:
    close(vae.encode(io[f"enc.{case}.in"][None])[0], io[f"enc.{case}.latent"], 1e-4)


def test_decode_is_official(vae: VAE, io: dict[str, torch.Tensor]) -> None:
    frames_3THW = vae.decode(io["dec.z"][None])[0]
    close(frames_3THW, io["dec.all_raw"], 1e-4)


def test_stream_and_its_caches_are_official(vae: VAE, io: dict[str, torch.Tensor]) -> None:
    stream = vae.stream(1)
    for i, (a, b) in enumerate([(0, 1), (1, 4), (4, 7)]):
        close(vae.decode_stream(io["dec.z"][None, :, a:b], stream)[0].clamp(-1, 1), io[f"stream.chunk{i}"], 1e-4)
        if i == 1:
            assert len(stream.caches) == 32
            for slot, cache in enumerate(stream.caches):
                name = f"stream.cache_after_chunk1.{slot:02d}"
                assert cache is not None and (name in io or slot % 5)
                if name in io:
                    close(cache[0], io[name], 1e-4)


@pytest.mark.parametrize("cuts", [(1, 3, 3), (1, 1, 1, 1, 1, 1, 1), (2, 5), (4, 2, 1)])
def test_cuts_do_not_matter(vae: VAE, io: dict[str, torch.Tensor], cuts: tuple[int, ...]) -> None:
    z_BCthw = torch.stack([io["dec.z"], io["dec.z"].flip(1)])
    stream = vae.stream(2)
    parts = [vae.decode_stream(z, stream) for z in z_BCthw.split(cuts, 2)]
    close(torch.cat(parts, 2), vae.decode(z_BCthw), 1e-5)


def test_warm_up_is_a_discarded_decode(vae: VAE, io: dict[str, torch.Tensor]) -> None:
    z_BCthw = io["dec.z"][None]
    frames = vae.decode_stream(z_BCthw[:, :, 4:], vae.warm_up(z_BCthw[:, :, :4]))
    close(frames, vae.decode(z_BCthw)[:, :, 13:], 1e-5)


def test_kept_frames_do_not_hold_the_tensors_they_were_cut_from(vae: VAE, io: dict[str, torch.Tensor]) -> None:
    for cache in vae.warm_up(io["dec.z"][None]).caches:
        assert cache is not None and cache.untyped_storage().nbytes() == cache.nbytes


def test_a_stream_stays_where_it_is(vae: VAE, io: dict[str, torch.Tensor]) -> None:
    """A captured decode finds its caches from block to block; nothing that a viewer of an earlier stream holds is changed."""
    z_BCthw = torch.stack([io["dec.z"], io["dec.z"].flip(1)])
    with torch.inference_mode():
        stream, other = vae.warm_up(z_BCthw[:, :, :1]), vae.warm_up(z_BCthw[:, :, :2])
        vae.decode_stream(z_BCthw[:, :, 1:2], stream)
        addresses = [c.data_ptr() for c in stream.caches if c is not None]
        pairs = [(a, b) for a, b in zip(stream.caches, other.caches) if a is not None and b is not None]
        assert len(addresses) == len(pairs) == 32 and all(torch.equal(a, b) for a, b in pairs)
        vae.decode_stream(z_BCthw[:, :, 2:5], stream)
        vae.decode_stream(z_BCthw[:, :, 5:6], stream)
    assert [c.data_ptr() for c in stream.caches if c is not None] == addresses
    assert all(c is not None and c.movedim(1, -1).is_contiguous() for c in stream.caches)
    assert not set(addresses) & {c.data_ptr() for c in other.caches if c is not None}


def as_channels_last(x: torch.Tensor) -> torch.Tensor:
    """Replaces the kernels' conversion to channels last by one that must not copy."""
    assert x.movedim(1, -1).is_contiguous(), (x.shape, x.stride())
    return x.movedim(1, -1)


def test_kernels_decode_what_the_references_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole decoder on its kernels: under the interpreter without a GPU, where they also take the float32 that a GPU would not."""
    pytest.importorskip("triton")
    from tests.kernels.poison import DEVICE

    from everface.kernels.video import causal_conv3d, norm_silu, upsample_conv

    two = {"dim_mult": (1, 2), "temperal_downsample": (True,), "encoder_blocks": (0, 0), "decoder_blocks": (0, 0)}
    vae = varied(VAEConfig(dim=8, **two), encoder=False)
    vae.requires_grad_(False).to(DEVICE)
    z_BCthw = torch.randn(1, 16, 2, 3, 5, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    want = vae.decode(z_BCthw)
    for module, name in ((causal_conv3d, "runs_kernel"), (upsample_conv, "runs_kernel"), (norm_silu, "runs_triton")):
        monkeypatch.setattr(module, name, lambda *_: True)
    for module in (causal_conv3d, upsample_conv):
        monkeypatch.setattr(module, "channels_last", as_channels_last)
    stream = vae.stream()
    parts = [vae.decode_stream(z, stream) for z in z_BCthw.split(1, 2)]
    close(torch.cat(parts, 2), want, 2e-3 if DEVICE == "cuda" else 1e-5)


@pytest.mark.gpu
def test_a_captured_decode_is_the_decode() -> None:
    vae = varied(SMALL, encoder=False).requires_grad_(False).to("cuda", torch.bfloat16)
    z = torch.randn(1, 16, 16, 4, 6, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        plain, stream = vae.warm_up(z[:, :, :4]), vae.warm_up(z[:, :, :1])
        want = [vae.decode_stream(z[:, :, a : a + 3], plain) for a in (4, 7, 10, 13)]
        vae.decode_stream(z[:, :, 1:4], stream)  # compiles what the graph launches
        latents, graph = z[:, :, 4:7].clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            frames = vae.decode_stream(latents, stream)
        for a, wanted in zip((4, 7, 10, 13), want):
            latents.copy_(z[:, :, a : a + 3])
            graph.replay()
            assert torch.equal(frames, wanted)


def test_other_sizes_and_levels_without_blocks() -> None:
    vae = varied(SMALL).requires_grad_(False)
    video = torch.rand(2, 3, 9, 16, 32) * 2 - 1
    z = vae.encode(video)
    assert z.shape == (2, 16, 3, 2, 4)
    close(vae.encode(video[:1]), z[:1], 1e-5)
    close(vae.encode(video[:, :, :5]), z[:, :, :2], 1e-5)  # causal
    frames = vae.decode(z)
    assert frames.shape == video.shape
    close(vae.decode(z[:, :, :2]), frames[:, :, :5], 1e-5)
    assert torch.equal(vae.decode(z), frames)


def test_halves_are_built_alone() -> None:
    whole = varied(SMALL)
    keys = set(whole.state_dict())
    encoder, decoder = VAE(SMALL, decoder=False), VAE(SMALL, encoder=False)
    assert set(encoder.state_dict()) == {k for k in keys if k.startswith(("encoder.", "conv1."))}
    assert set(decoder.state_dict()) == {k for k in keys if k.startswith(("decoder.", "conv2."))}
    encoder.load_state_dict(whole.state_dict(), strict=False)
    decoder.load_state_dict(whole.state_dict(), strict=False)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(decoder.decode(encoder.encode(video)), whole.decode(whole.encode(video)))


def test_gradients_reach_every_weight() -> None:
    vae = varied(SMALL)
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    vae.decode(vae.encode(video)).square().mean().backward()
    without = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_weights_and_activations_are_channels_last(vae: VAE, io: dict[str, torch.Tensor]) -> None:
    assert vae.decoder.conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)
    kept = vae.warm_up(io["dec.z"][None]).caches
    assert all(c is not None and c.is_contiguous(memory_format=torch.channels_last_3d) for c in kept)


def test_what_does_not_fit_is_refused(vae: VAE) -> None:
    with pytest.raises(BadInput, match="1 \\+ 4k frames"):
        vae.encode(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(BadInput, match="multiples of 8"):
        vae.encode(torch.zeros(1, 3, 5, 12, 16))
    with pytest.raises(BadInput, match="holds 2 videos"):
        vae.decode_stream(torch.zeros(1, 16, 1, 2, 2), vae.stream(2))
    with pytest.raises(BadWeights, match="different lengths"):
        VAE(replace(SMALL, decoder_blocks=(1, 1, 1)))


PATCHED = replace(SMALL, patch_size=2)


def test_patches_are_wan_2_2s() -> None:
    """Channel, then column, then row inside the square; and back."""
    x = torch.arange(2 * 3 * 1 * 4 * 6.0).view(2, 3, 1, 4, 6)
    folded = patchify(x, 2)
    assert folded.shape == (2, 12, 1, 2, 3)
    for channel, column, row in product(range(3), range(2), range(2)):
        assert torch.equal(folded[:, 4 * channel + 2 * column + row], x[:, channel, :, row::2, column::2])
    assert torch.equal(unpatchify(folded, 2), x) and patchify(x, 1) is x


def test_a_patched_codec_has_twice_the_stride() -> None:
    vae = varied(PATCHED).eval()
    assert PATCHED.stride == (4, 16, 16) and SMALL.stride == (4, 8, 8)
    video = torch.rand(1, 3, 9, 64, 96) * 2 - 1
    with torch.inference_mode():
        z = vae.encode(video)
        assert z.shape == (1, 16, 3, 4, 6)
        out, stream = vae.decode(z), vae.stream(1)
        assert out.shape == video.shape
        close(torch.cat([vae.decode_stream(part, stream) for part in z.split((1, 1, 1), 2)], 2), out, 1e-5)
    with pytest.raises(BadInput, match="multiples of 16"):
        vae.encode(video[..., :72, :72])
    with pytest.raises(BadWeights, match="patch_size 3"):
        VAEConfig(patch_size=3)


def test_convolutions_by_frames_are_the_same() -> None:
    g = torch.Generator().manual_seed(0)
    for space in (1, 3):
        x, weight, bias = torch.randn(2, 5, 7, 6, 8, generator=g), torch.randn(4, 5, 3, space, space, generator=g), torch.randn(4, generator=g)
        padding = [0, space // 2, space // 2]
        close(conv3d_by_frames(x, weight, bias, padding), torch.nn.functional.conv3d(x, weight, bias, 1, padding), 1e-4)


@pytest.mark.skipif(torch.bfloat16 not in cpu_dtypes(), reason="needs a CPU that multiplies bfloat16")
@torch.inference_mode()
def test_a_cpu_decodes_in_bfloat16_what_it_decodes_in_float32() -> None:
    """On the bundled weights, cut into calls as a session cuts, and by the direct convolutions: others take seconds a block."""
    channels = build_decoder(DEFAULT_WEIGHTS, Deployment()).config.z_dim
    z = torch.randn(1, channels, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    videos = dict[str, torch.Tensor]()
    for name in ("float32", "bfloat16"):
        deployment = Deployment(dtype=name)
        vae, dtype = build_decoder(DEFAULT_WEIGHTS, deployment), decoder_dtype(deployment)
        assert str(dtype) == f"torch.{name}"
        stream = vae.stream()
        with torch.profiler.profile() as profile:
            videos[name] = torch.cat([vae.decode_stream(part.to(dtype), stream) for part in z.split(3, 2)], 2).float()
        assert not any("slow_conv3d" in event.key for event in profile.key_averages())
        assert all(cache is None or cache.dtype == dtype for cache in stream.caches)
    error = (videos["bfloat16"].clamp(-1, 1) - videos["float32"].clamp(-1, 1)) / 2
    assert -10 * error.square().mean().log10() > 50  # dB


@pytest.mark.skipif(torch.bfloat16 in cpu_dtypes(), reason="this CPU multiplies bfloat16")
def test_a_cpu_without_bfloat16_decodes_in_float32() -> None:
    assert decoder_dtype(Deployment(dtype="bfloat16")) == torch.float32
