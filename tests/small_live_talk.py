"""A tiny LiveTalk with random weights in the release's layout. Names and shapes are written down from its description, not from our modules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.weights.official import Shapes, affine, audio_shapes, fill

from everface.core.config import TextConfig, VAEConfig
from everface.core.live_talk_config import LiveTalkConfig, LiveTalkModelConfig
from everface.networks.video.vae import VAE
from everface.weights import layout

SMALL = LiveTalkModelConfig(
    LiveTalkConfig(
        dim=64, ffn_dim=96, freq_dim=32, num_heads=2, num_layers=4, text_dim=8, text_len=4, audio_channels=84, audio_hidden_size=12,
        audio_layers=(2, 3),
    ),
    VAEConfig(dim=4, encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1)),
    TextConfig("none"),
    "small-livetalk",
    (64, 64),
)  # fmt: skip
WAV2VEC = {
    "model_type": "wav2vec2", "vocab_size": 32, "hidden_size": 28, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "conv_dim": [12] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_bias": False,
    "do_stable_layer_norm": False, "feat_extract_norm": "group", "feat_extract_activation": "gelu", "hidden_act": "gelu",
    "layer_norm_eps": 1e-5, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 7,
}  # fmt: skip


def live_talk_shapes(c: LiveTalkConfig) -> Shapes:
    """Every key of the DiT. At the released sizes: 857 keys, 1,421,187,232 numbers."""
    d = c.dim
    s = affine("patch_embedding", d, 33, 1, 2, 2) | affine("text_embedding.0", d, c.text_dim) | affine("text_embedding.2", d, d)
    s |= affine("time_embedding.0", d, c.freq_dim) | affine("time_embedding.2", d, d) | affine("time_projection.1", 6 * d, d)
    s |= affine("head.head", 64, d) | {"head.modulation": (1, 2, d)}
    s |= affine("audio_proj.proj", c.audio_hidden_size, 4 * c.audio_channels) | affine("audio_proj.norm_out", c.audio_hidden_size)
    for j in range(len(c.audio_layers)):
        s |= affine(f"audio_cond_projs.{j}", d, c.audio_hidden_size)
    for block in (f"blocks.{i}" for i in range(c.num_layers)):
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for leaf in "qkvo":
                s |= affine(f"{attention}.{leaf}", d, d)
            s |= {f"{attention}.norm_q.weight": (d,), f"{attention}.norm_k.weight": (d,)}
        s |= affine(f"{block}.norm3", d) | affine(f"{block}.ffn.0", c.ffn_dim, d) | affine(f"{block}.ffn.2", d, c.ffn_dim)
        s[f"{block}.modulation"] = (1, 6, d)
    return s


def write_live_talk(root: Path, seed: int = 0) -> Path:
    """The release's files, and a config.json with the small sizes, which it lacks."""
    own = {"dit": asdict(SMALL.dit), "vae": asdict(SMALL.vae), "text": asdict(SMALL.text), "name": SMALL.name, "size": SMALL.size}
    (root / layout.CONFIG).write_text(json.dumps(own))
    save_file(fill(live_talk_shapes(SMALL.dit), seed, torch.float32), root / layout.LIVE_TALK_DIT)
    torch.manual_seed(seed)
    torch.save(dict(VAE(SMALL.vae).state_dict()), root / layout.VAE)
    audio = root / layout.LIVE_TALK_AUDIO
    audio.mkdir()
    (audio / "config.json").write_text(json.dumps(WAV2VEC))
    unwanted = [f"wav2vec2.feature_extractor.conv_layers.{i}.conv.bias" for i in range(7)]
    unwanted += [f"wav2vec2.feature_extractor.conv_layers.{i}.layer_norm.{leaf}" for i in range(1, 7) for leaf in ("weight", "bias")]
    shapes = {name: shape for name, shape in audio_shapes(WAV2VEC).items() if name not in unwanted}
    save_file(fill(shapes, seed + 1, torch.float32), audio / "model.safetensors")
    return root


@pytest.fixture(scope="session")
def small_live_talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its VAE is converted once, into a cache of this run's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EVERFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield write_live_talk(tmp_path_factory.mktemp("livetalk"))
