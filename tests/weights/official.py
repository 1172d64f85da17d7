"""Writes a tiny checkpoint in the official layout: the same files, key names, dtypes and shard index as the release, other sizes.

Key names and shapes are written down here from the description of the release, not taken from our modules, so that loading it
into them tests them. Only `config.json` has more than the official one: sections `vae` and `text` with the small sizes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from everface.core.config import DiTConfig, ModelConfig, TextConfig, VAEConfig
from everface.weights import layout

Shapes = dict[str, tuple[int, ...]]

TINY = ModelConfig(
    dit=DiTConfig(
        dim=64, ffn_dim=128, freq_dim=32, num_heads=2, num_layers=3, text_dim=16, text_len=24, audio_dim=32,
        audio_inject_layers=(0, 2),
    ),
    vae=VAEConfig(dim=8),
    text=TextConfig(dim=16, dim_attn=16, dim_ffn=32, num_heads=2, num_layers=2, vocab=64),
)  # fmt: skip
WAV2VEC = {
    "architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2", "vocab_size": 33, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 24, "num_attention_heads": 2, "conv_dim": [8] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_bias": True, "do_stable_layer_norm": True, "feat_extract_norm": "layer",
    "feat_extract_activation": "gelu", "hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 7,
}  # fmt: skip
LORA_RANK = 4


def affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def dit_shapes(c: DiTConfig) -> Shapes:
    """Every key of the DiT. At the released sizes: 1260 keys, 16,295,755,609 numbers."""
    d = c.dim
    s: Shapes = {
        "head.modulation": (1, 2, d),
        "trainable_cond_mask.weight": (3, d),
        "casual_audio_encoder.weights": (1, c.wav2vec_layers, 1, 1),
    }
    s |= affine("patch_embedding", d, c.in_dim, 1, 2, 2) | affine("cond_encoder", d, c.cond_dim, 1, 2, 2)
    s |= affine("text_embedding.0", d, c.text_dim) | affine("text_embedding.2", d, d)
    s |= affine("time_embedding.0", d, c.freq_dim) | affine("time_embedding.2", d, d) | affine("time_projection.1", 6 * d, d)
    s |= affine("head.head", 4 * c.out_dim, d) | affine("frame_packer.proj", d, 16, 1, 2, 2)
    s |= affine("frame_packer.proj_2x", d, 16, 2, 4, 4) | affine("frame_packer.proj_4x", d, 16, 4, 8, 8)
    attentions = [f"blocks.{i}.{a}_attn" for i in range(c.num_layers) for a in ("self", "cross")]
    attentions += [f"audio_injector.injector.{j}" for j in range(len(c.audio_inject_layers))]
    for attention in attentions:
        for leaf in "qkvo":
            s |= affine(f"{attention}.{leaf}", d, d)
        s |= {f"{attention}.norm_q.weight": (d,), f"{attention}.norm_k.weight": (d,)}
    for i in range(c.num_layers):
        s |= (
            affine(f"blocks.{i}.norm3", d) | affine(f"blocks.{i}.ffn.0", c.ffn_dim, d) | affine(f"blocks.{i}.ffn.2", d, c.ffn_dim)
        )
        s[f"blocks.{i}.modulation"] = (1, 6, d)
    for j in range(len(c.audio_inject_layers)):
        s |= affine(f"audio_injector.injector_adain_layers.{j}.linear", 2 * d, d)
    e = "casual_audio_encoder.encoder"
    s |= affine(f"{e}.conv1_local.conv", d, c.audio_dim, 3) | affine(f"{e}.conv1_global.conv", d // 4, c.audio_dim, 3)
    s |= (
        affine(f"{e}.conv2.conv", d // 2, d // 4, 3) | affine(f"{e}.conv3.conv", d, d // 2, 3) | affine(f"{e}.final_linear", d, d)
    )
    return s | {f"{e}.padding_tokens": (1, 1, 1, d)}


def vae_shapes(c: VAEConfig) -> Shapes:
    """Every key of the VAE with the official four levels. At the released sizes 126,892,531 numbers."""
    w1, w2, w3, w4 = (c.dim * m for m in c.dim_mult)
    z = c.z_dim

    def residual(name: str, a: int, b: int) -> Shapes:
        s = {f"{name}.residual.0.gamma": (a, 1, 1, 1), f"{name}.residual.3.gamma": (b, 1, 1, 1)}
        s |= affine(f"{name}.residual.2", b, a, 3, 3, 3) | affine(f"{name}.residual.6", b, b, 3, 3, 3)
        return s if a == b else s | affine(f"{name}.shortcut", b, a, 1, 1, 1)

    def middle(name: str) -> Shapes:
        attention = (
            {f"{name}.1.norm.gamma": (w4, 1, 1)}
            | affine(f"{name}.1.to_qkv", 3 * w4, w4, 1, 1)
            | affine(f"{name}.1.proj", w4, w4, 1, 1)
        )
        return residual(f"{name}.0", w4, w4) | attention | residual(f"{name}.2", w4, w4)

    s = affine("encoder.conv1", w1, 3, 3, 3, 3) | middle("encoder.middle") | {"encoder.head.0.gamma": (w4, 1, 1, 1)}
    s |= affine("encoder.head.2", 2 * z, w4, 3, 3, 3) | affine("conv1", 2 * z, 2 * z, 1, 1, 1) | affine("conv2", z, z, 1, 1, 1)
    inputs = {0: w1, 1: w1, 3: w1, 4: w2, 6: w2, 7: w3, 9: w3, 10: w4}
    for i, a in inputs.items():
        s |= residual(f"encoder.downsamples.{i}", a, (w1, w2, w3, w4)[i // 3])
    for i, w in {2: w1, 5: w2, 8: w3}.items():
        s |= affine(f"encoder.downsamples.{i}.resample.1", w, w, 3, 3)
        s |= affine(f"encoder.downsamples.{i}.time_conv", w, w, 3, 1, 1) if i > 2 else {}
    s |= affine("decoder.conv1", w4, z, 3, 3, 3) | middle("decoder.middle") | {"decoder.head.0.gamma": (w1, 1, 1, 1)}
    s |= affine("decoder.head.2", 3, w1, 3, 3, 3)
    inputs = {0: w4, 1: w4, 2: w4, 4: w4 // 2, 5: w3, 6: w3, 8: w3 // 2, 9: w2, 10: w2, 12: w2 // 2, 13: w1, 14: w1}
    for i, a in inputs.items():
        s |= residual(f"decoder.upsamples.{i}", a, (w4, w3, w2, w1)[i // 4])
    for i, w in {3: w4, 7: w3, 11: w2}.items():
        s |= affine(f"decoder.upsamples.{i}.resample.1", w // 2, w, 3, 3)
        s |= affine(f"decoder.upsamples.{i}.time_conv", 2 * w, w, 3, 1, 1) if i < 11 else {}
    return s


def text_shapes(c: TextConfig) -> Shapes:
    """Every key of the umT5 encoder. At the released sizes 5,680,910,336 numbers."""
    s: Shapes = {"token_embedding.weight": (c.vocab, c.dim), "norm.weight": (c.dim,)}
    for b in (f"blocks.{i}" for i in range(c.num_layers)):
        s |= {f"{b}.norm1.weight": (c.dim,), f"{b}.norm2.weight": (c.dim,)}
        s |= {f"{b}.attn.{leaf}.weight": (c.dim_attn, c.dim) for leaf in "qkv"} | {f"{b}.attn.o.weight": (c.dim, c.dim_attn)}
        s |= {f"{b}.ffn.{leaf}.weight": (c.dim_ffn, c.dim) for leaf in ("gate.0", "fc1")} | {
            f"{b}.ffn.fc2.weight": (c.dim, c.dim_ffn)
        }
        s[f"{b}.pos_embedding.embedding.weight"] = (c.num_buckets, c.num_heads)
    return s


def audio_shapes(c: dict) -> Shapes:
    """Every key of Hugging Face's Wav2Vec2ForCTC as published, with the weight norm of its day."""
    d, widths, p = c["hidden_size"], c["conv_dim"], "wav2vec2"
    s: Shapes = {f"{p}.masked_spec_embed": (d,)} | affine("lm_head", c["vocab_size"], d)
    for i, kernel in enumerate(c["conv_kernel"]):
        layer = f"{p}.feature_extractor.conv_layers.{i}"
        s |= affine(f"{layer}.conv", widths[i], widths[i - 1] if i else 1, kernel) | affine(f"{layer}.layer_norm", widths[i])
    s |= affine(f"{p}.feature_projection.layer_norm", widths[-1]) | affine(f"{p}.feature_projection.projection", d, widths[-1])
    conv, kernel = f"{p}.encoder.pos_conv_embed.conv", c["num_conv_pos_embeddings"]
    s |= {
        f"{conv}.weight_g": (1, 1, kernel),
        f"{conv}.weight_v": (d, d // c["num_conv_pos_embedding_groups"], kernel),
        f"{conv}.bias": (d,),
    }
    s |= affine(f"{p}.encoder.layer_norm", d)
    for layer in (f"{p}.encoder.layers.{i}" for i in range(c["num_hidden_layers"])):
        for leaf in "qkv":
            s |= affine(f"{layer}.attention.{leaf}_proj", d, d)
        s |= (
            affine(f"{layer}.attention.out_proj", d, d)
            | affine(f"{layer}.layer_norm", d)
            | affine(f"{layer}.final_layer_norm", d)
        )
        s |= affine(f"{layer}.feed_forward.intermediate_dense", c["intermediate_size"], d)
        s |= affine(f"{layer}.feed_forward.output_dense", d, c["intermediate_size"])
    return s


def lora_shapes(c: DiTConfig, rank: int) -> Shapes:
    """Pairs for q, k, v, o, ffn.0, ffn.2, in PEFT's key form."""
    s: Shapes = {}
    for name, shape in dit_shapes(c).items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.endswith((".q", ".k", ".v", ".o", ".ffn.0", ".ffn.2")):
            s[f"base_model.model.{module}.lora_A.default.weight"] = (rank, shape[1])
            s[f"base_model.model.{module}.lora_B.default.weight"] = (shape[0], rank)
    return s


def fill(shapes: Shapes, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random weights that keep a forward of order one: norms near 1, biases near 0, the rest 1/sqrt(fan in)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")) or name.endswith("weight_g"):
            tensor = 1 + 0.1 * noise
        elif len(shape) == 1:
            tensor = 0.05 * noise
        else:
            tensor = noise / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        tensors[name] = tensor.to(dtype)
    return tensors


def write_official(root: Path, seed: int = 0) -> ModelConfig:
    """Write the tiny checkpoint, its LoRA included, into `root`, and return its configuration."""
    c = TINY.dit
    root.mkdir(parents=True, exist_ok=True)
    released = {"_class_name": "WanModel_S2V", "_diffusers_version": "0.30.0", "zero_init": True, **layout.ARCHITECTURE}
    own = {k: v for k, v in TINY.to_dict()["dit"].items() if k not in ("block_frames", "window_blocks", "patch_size")}
    (root / layout.CONFIG).write_text(
        json.dumps(released | own | {"vae": {"dim": TINY.vae.dim}, "text": TINY.to_dict()["text"]}, indent=1)
    )
    tensors = fill(dit_shapes(c), seed, torch.bfloat16)
    weight_map = {}
    for i in range(3):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-00003.safetensors"
        shard = dict(list(tensors.items())[i::3])
        save_file(shard, root / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    size = sum(t.nbytes for t in tensors.values())
    (root / layout.DIT_INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    torch.save(fill(text_shapes(TINY.text), seed + 1, torch.bfloat16), root / layout.TEXT)
    torch.save(fill(vae_shapes(TINY.vae), seed + 2, torch.float32), root / layout.VAE)
    (root / layout.AUDIO).mkdir(exist_ok=True)
    save_file(fill(audio_shapes(WAV2VEC), seed + 3, torch.float32), root / layout.AUDIO / "model.safetensors", {"format": "pt"})
    (root / layout.AUDIO / "config.json").write_text(json.dumps(WAV2VEC))
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "sampling_rate": 16000,
        "do_normalize": True,
        "return_attention_mask": True,
    }
    (root / layout.AUDIO / "preprocessor_config.json").write_text(json.dumps(extractor))
    lora = {k: 0.1 * t for k, t in fill(lora_shapes(c, LORA_RANK), seed + 4, torch.bfloat16).items()}
    save_file(lora, root / layout.LORA, {"format": "pt"})
    write_tokenizer(root / layout.TOKENIZER, TINY.text.vocab)
    return TINY


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A real unigram tokenizer of single letters, with umT5's special tokens and the closing `</s>`."""
    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("<unk>", 0.0), *((x, -3.0) for x in letters)]
    assert len(pieces) <= vocab
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = special | {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
