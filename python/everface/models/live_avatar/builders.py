"""Modules built from a checkpoint, each with only what its role runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from everface.core.config import RENDER_WINDOW_S, SAMPLE_RATE, Deployment, DiTConfig, ModelConfig, TextConfig, TransformerConfig
from everface.core.errors import BadInput, BadWeights
from everface.core.json_file import read_json
from everface.kernels.attention import backend
from everface.kernels.launch import tile_family
from everface.kernels.video.causal_conv3d import cpu_dtypes
from everface.models.live_avatar.conditions import Conditioner
from everface.networks.audio import articulators
from everface.networks.audio.articulators import ArticulatorNet
from everface.networks.audio.causal_encoder import CausalAudioEncoder
from everface.networks.audio.features import FrontEnd, LogMel
from everface.networks.familiarity import FILE as FAMILIARITY
from everface.networks.familiarity import Familiarity
from everface.networks.motion import POSE
from everface.networks.text import NoText, Prompter, TextEncoder, UMT5Encoder, load_tokenizer
from everface.networks.transformer.backbone import Backbone
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.kv_profile import KeptKeys, KVProfile
from everface.networks.transformer.schedule import Schedule
from everface.networks.uninitialized import uninitialized
from everface.networks.video.mouth_finder import FILE as MOUTH_FINDER
from everface.networks.video.mouth_finder import MouthFinder
from everface.networks.video.vae import VAE
from everface.weights.files import open_file
from everface.weights.load import Checkpoint, check_weights, load_into, open_checkpoint
from everface.weights.quantize import FP8_ATTENTION, quantize_audio, quantize_block

DEFAULT_WEIGHTS = Path(__file__).parents[2] / "default"
AUDIO_ENCODER = "casual_audio_encoder."
KV_PROFILE = "kv_profile.json"  # beside the weights


def dtype_of(deployment: Deployment) -> torch.dtype:
    """The torch dtype of the activations: bfloat16 in fp8 and fp8-attention too, around GEMMs and attention of quantized values."""
    return torch.float32 if deployment.dtype == "float32" else torch.bfloat16


def decoder_dtype(deployment: Deployment) -> torch.dtype:
    """That of the video decoder: float32 on a CPU that does not multiply bfloat16 itself, where a block would take minutes."""
    wanted = dtype_of(deployment)
    return torch.float32 if torch.device(deployment.device).type == "cpu" and wanted not in cpu_dtypes() else wanted


def select_attention(deployment: Deployment, head_dim: int) -> str:
    """Select the attention backend of this process as the deployment asks, before anything is captured. Returns its name, "reference" on a
    CPU and in float32. Raises Unavailable if the requested backend cannot serve."""
    backend.request_backend(deployment.attention)
    on = torch.device(deployment.device)
    if on.type != "cuda" or dtype_of(deployment) == torch.float32:
        return "reference"
    if deployment.kv_keep < 1:
        return "triton"  # the only one that reads ranges, whatever is selected for models that attend to everything
    return backend.select_backend(on, backend.FP8 if deployment.dtype == FP8_ATTENTION else dtype_of(deployment), head_dim).name


def build_dit(weights: Path, lora: Path | None, deployment: Deployment) -> tuple[ModelConfig, DiT]:
    """The whole transformer on its device, ready for inference."""
    check_dtype(deployment)
    checkpoint = open_checkpoint(weights, lora)
    select_attention(deployment, checkpoint.config.dit.head_dim)
    with uninitialized():
        dit = DiT(checkpoint.config.dit)
    load_dit(dit, checkpoint.dit(), deployment)
    chosen = kept_keys(weights, checkpoint.config.dit, deployment)
    dit.kept_keys = chosen and [kept.to(deployment.device) for kept in chosen]
    return checkpoint.config, dit


def kept_keys(weights: Path, cfg: DiTConfig, deployment: Deployment) -> list[KeptKeys] | None:
    """For each step what its heads attend to, by the profile beside the weights; None: to everything. Raises BadInput, BadWeights."""
    if deployment.kv_keep == 1:
        return None
    path = weights / KV_PROFILE
    if not path.exists():
        raise BadInput(f"keeping a share of the keys needs a profile of these weights, and {path} is missing: everface profile kv --weights {weights}")
    raw = read_json(path)
    try:
        profile = KVProfile.from_dict(raw, cfg, Schedule.for_sampler("official").steps)
    except BadWeights as error:
        raise BadWeights(f"{path} cannot be used, {error}: everface profile kv --weights {weights}") from None
    return profile.choose(deployment.kv_keep)


def check_dtype(deployment: Deployment) -> None:
    """Raises BadInput if the device does not compute in the deployment's dtype."""
    on = torch.device(deployment.device)
    if on.type != "cuda" or deployment.dtype not in ("fp8", FP8_ATTENTION):
        return
    if torch.cuda.get_device_capability(on) < (8, 9) or (deployment.dtype == FP8_ATTENTION and tile_family(on) < 90):  # not sm_120: 99 KiB of shared memory
        raise BadInput(f"{torch.cuda.get_device_name(on)} does not compute in {deployment.dtype}: choose bfloat16")


def load_dit(dit: DiT, source: Mapping[str, torch.Tensor], deployment: Deployment) -> None:
    """Fill, fuse and quantize the transformer on its device, a block at a time: beside the 8-bit weights only one block is there in
    bfloat16. Raises BadWeights before anything is loaded."""
    load_backbone(dit, source, deployment)
    quantize_audio(dit.audio_injector, deployment.dtype)
    dit.audio_injector.pack()


def load_backbone(dit: Backbone, source: Mapping[str, torch.Tensor], deployment: Deployment) -> None:
    """`load_dit` of any model of the family, without what only Live Avatar has."""
    check_weights(dit, source)
    for name, module in dit.named_children():
        if module is not dit.blocks:
            load_into(module, source, f"{name}.", dtype_of(deployment), deployment.device)
    for i, block in enumerate(dit.transformer_blocks()):
        load_into(block, source, f"blocks.{i}.", dtype_of(deployment), deployment.device)
        block.requires_grad_(False).self_attn.fuse()
        quantize_block(block, deployment.dtype, dit)
        if deployment.text_weights == "host":
            block.cross_attn.keep_text_weights_on_host()
        block.pack()
    dit.eval().requires_grad_(False).fuse()


def build_decoder(weights: Path, deployment: Deployment) -> VAE:
    """The VAE's decoder alone."""
    checkpoint = open_checkpoint(weights)
    vae = VAE(checkpoint.layout.config.vae, encoder=False)
    load_into(vae, checkpoint.vae(("conv2.", "decoder.")), dtype=decoder_dtype(deployment), device=deployment.device)
    return vae.eval().requires_grad_(False).pack()


def build_conditioner(weights: Path, lora: Path | None, deployment: Deployment) -> Conditioner:
    """What the session's process needs: VAE encoder, sound front end, small audio encoder, prompt encoder. Float32."""
    checkpoint = open_checkpoint(weights, lora)
    checkpoint.prepare()  # convert and merge here, once, before the stages start and only read
    config, dit = checkpoint.config, checkpoint.config.dit
    vae, on = build_image_encoder(checkpoint, deployment)
    audio_encoder = CausalAudioEncoder(dit.dim, dit.audio_dim, dit.wav2vec_layers, dit.num_audio_token)
    load_into(audio_encoder, checkpoint.dit((AUDIO_ENCODER,)), AUDIO_ENCODER, torch.float32)
    front_end = build_front_end(checkpoint)
    channels = front_end.channels * (2 if config.audio.listens else 1)
    if (front_end.layers, channels) != (dit.wav2vec_layers, dit.audio_dim):
        raise BadInput(
            f"the sound front end gives {front_end.layers} layers of {channels} channels where the transformer wants "
            f"{dit.wav2vec_layers} of {dit.audio_dim}: the parts of {weights} do not belong together"
        )
    if config.motion and dit.cond_dim != POSE:
        raise BadInput(f"the transformer of {weights} takes a pose of {dit.cond_dim} channels, where motion has {POSE}: correct config.json")
    audio_encoder.eval().requires_grad_(False)
    prompter = build_prompter(checkpoint, config.text, dit)
    mouth = build_articulators(weights, front_end.channels) if config.motion else None
    return Conditioner(config, vae, audio_encoder, front_end, prompter, on, build_familiarity(weights), mouth)


def build_articulators(weights: Path, channels: int) -> ArticulatorNet:
    """What a model with motion reads the mouth from audio by. Raises BadInput, BadWeights."""
    path = weights / articulators.FILE
    if not path.exists():
        raise BadInput(f"a model with motion reads the mouth from audio by {articulators.FILE}, and {path} is missing: fetch the model again")
    net = ArticulatorNet(channels)
    load_into(net, open_file(path), dtype=torch.float32)
    return net.eval().requires_grad_(False)


def build_familiarity(weights: Path) -> Familiarity | None:
    """What tells images unlike those that the weights know, where it is beside them. Raises BadWeights."""
    path = weights / FAMILIARITY
    return Familiarity(open_file(path)) if path.exists() else None


def build_mouth_finder(weights: Path, deployment: Deployment) -> MouthFinder | None:
    """What finds the mouth of an image, on the decoder's device, where it is beside the weights. Raises BadWeights."""
    path = weights / MOUTH_FINDER
    if not path.exists():
        return None
    net = MouthFinder()
    load_into(net, open_file(path), dtype=torch.float32)
    return net.eval().requires_grad_(False).to(deployment.device)


def build_image_encoder(checkpoint: Checkpoint, deployment: Deployment) -> tuple[VAE, torch.device]:
    """The VAE's encoder alone, in float32, and where it is."""
    on = torch.device(deployment.device if deployment.image_encoder == "device" else "cpu")
    vae = VAE(checkpoint.layout.config.vae, decoder=False)
    load_into(vae, checkpoint.vae(("conv1.", "encoder.")), dtype=torch.float32, device=on)
    return vae.eval().requires_grad_(False), on


def build_front_end(checkpoint: Checkpoint) -> FrontEnd:
    """Log-mel for models trained on it, wav2vec2 for the official one, which takes windows that `AudioNormalizer` normalized."""
    audio = checkpoint.config.audio
    if audio.kind == "logmel":
        return LogMel(audio.mels, audio.hops)
    from everface.networks.audio.wav2vec import Wav2Vec2, build_wav2vec2  # transformers takes seconds to import

    sizes = read_json(checkpoint.audio_folder() / "config.json")
    model = build_wav2vec2(sizes, dict(checkpoint.audio()))
    back_s, ahead_s = RENDER_WINDOW_S
    return Wav2Vec2(model, int(back_s * SAMPLE_RATE), int(ahead_s * SAMPLE_RATE), normalized=True)


def build_prompter(checkpoint: Checkpoint, text: TextConfig, sizes: TransformerConfig) -> Prompter:
    """The prompt encoder, or zeros for a model trained without text."""
    if text.kind == "none":
        return NoText(sizes.text_dim)
    with uninitialized():
        encoder = UMT5Encoder(text)
    load_into(encoder, checkpoint.text(), dtype=torch.float32)
    return TextEncoder(encoder.eval(), load_tokenizer(checkpoint.tokenizer(), sizes.text_len))
