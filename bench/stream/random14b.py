"""The roles of the 14B model with random weights, made on the device: what a stream costs, where no checkpoint is.

Sizes follow the device: the released model at 704x384 on a GPU, a tiny one of the same parts on a CPU. Weights are normals scaled so that
activations keep their size from layer to layer; zeros draw less power and run faster than anything real.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from everface.core.config import Deployment, DiTConfig, ModelConfig, TransformerConfig, VAEConfig
from everface.models.live_avatar.builders import decoder_dtype, dtype_of, select_attention
from everface.models.live_avatar.names import DECODE
from everface.models.live_avatar.roles import DecodeRole, Denoiser, StepRole
from everface.models.live_avatar.sink import SinkSession
from everface.networks.transformer.backbone import Backbone
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.schedule import Schedule
from everface.networks.video.vae import VAE
from everface.runtime.messages import Params, Tensors
from everface.runtime.model import BlockFormat, Window
from everface.weights.quantize import quantize_audio, quantize_block

MODEL = "bench.stream.random14b:Random14B"
ON_GPU = torch.cuda.is_available()
TINY = DiTConfig(
    dim=128, ffn_dim=256, freq_dim=32, num_heads=2, num_layers=3, text_dim=16, text_len=8, audio_dim=16, wav2vec_layers=1,
    audio_inject_layers=(0, 2),
)  # fmt: skip
CONFIG = ModelConfig(
    dit=DiTConfig() if ON_GPU else TINY,
    vae=VAEConfig() if ON_GPU else VAEConfig(dim=8, decoder_blocks=(1, 1, 1, 1)),
    name="random",
)
LATENT = (48, 88) if ON_GPU else (8, 8)  # rows and columns of a latent frame
MOTION_LATENTS = 19  # of the motion history


@torch.no_grad()
def draw(module: nn.Module, prefix: str, cfg: TransformerConfig) -> None:
    """The weights of a module, drawn where they are. `prefix`: of its names in the model."""
    for suffix, p in module.named_parameters():
        name = prefix + suffix
        if p.dim() > 1 and "modulation" not in name:
            p.normal_(std=math.prod(p.shape[1:]) ** -0.5)
        elif name.endswith("bias"):
            p.zero_()
        elif "norm" in name or name.endswith("encoder.weights"):
            p.fill_(1)
        else:
            p.normal_(std=cfg.dim**-0.5)


@torch.no_grad()
def random_dit(cfg: DiTConfig, device: torch.device | str, dtype: torch.dtype = torch.bfloat16, quantized: str = "") -> DiT:
    """The fused model, quantized as `quantize_for_dtype` does for this dtype of a deployment, a block at a time as a checkpoint is loaded:
    beside the 8-bit weights only one block is there in 16 bits."""
    with torch.device("meta"):
        dit = DiT(cfg).to(dtype)
    draw_all(dit, device, quantized)
    quantize_audio(dit.audio_injector, quantized)
    return dit.fuse()


@torch.no_grad()
def draw_all(dit: Backbone, device: torch.device | str, quantized: str = "") -> None:
    """Weights for a model on the meta device."""
    dit.eval().requires_grad_(False)
    for module in dit.children():
        if module is not dit.blocks:
            module.to_empty(device=device)
    for name, module in dit.named_children():  # in the order of the model: the embedding of time, which scales come from, before the blocks
        if module is not dit.blocks:
            draw(module, f"{name}.", dit.cfg)
            continue
        for i, block in enumerate(dit.transformer_blocks()):
            draw(block.to_empty(device=device), f"blocks.{i}.", dit.cfg)
            block.self_attn.fuse()
            quantize_block(block, quantized, dit)


@torch.no_grad()
def random_decoder(config: VAEConfig, device: torch.device | str, dtype: torch.dtype) -> VAE:
    """The video decoder alone, as its constructor draws it."""
    return VAE(config, encoder=False).eval().requires_grad_(False).to(device, dtype).channels_last()


_denoisers: dict[str, Denoiser] = {}  # one transformer a process, shared by its steps


class Random14B:
    """The model, of a spec with `deployment` and `sampler` alone."""

    @staticmethod
    def build_role(name: str, spec: dict[str, Any]) -> StepRole | DecodeRole:
        deployment = Deployment(**{**spec["deployment"], "device": spec.get("device", spec["deployment"]["device"])})
        if name == DECODE:
            return DecodeRole(random_decoder(CONFIG.vae, deployment.device, decoder_dtype(deployment)), deployment)
        key = repr(deployment)
        if key not in _denoisers:
            torch.manual_seed(0)
            select_attention(deployment, CONFIG.dit.head_dim)
            dit = random_dit(CONFIG.dit, deployment.device, dtype_of(deployment), deployment.dtype)
            _denoisers[key] = Denoiser(dit, CONFIG, deployment)
        return StepRole(_denoisers[key], Schedule.for_sampler(spec["sampler"]), int(name.removeprefix("step")))


def forget() -> None:
    """Let go of the transformers of this process."""
    _denoisers.clear()


class RandomSession(SinkSession):
    """A session of random conditions, as `LiveAvatarSession` without its encoders."""

    format = BlockFormat()

    def __init__(self) -> None:
        cfg, drawn = CONFIG.dit, torch.Generator().manual_seed(0)
        channels = cfg.in_dim
        sizes = {"reference": (channels, 1, *LATENT), "motion": (channels, MOTION_LATENTS, *LATENT), "text": (cfg.text_len, cfg.text_dim)}
        self._tensors = {name: torch.randn(size, generator=drawn) for name, size in sizes.items()}
        super().__init__(cfg.window_blocks, self._tensors["reference"])

    def initial_state(self) -> tuple[Tensors, Params]:
        """Reference, motion and text, float32 on the CPU."""
        return self._tensors, {"seed": 1, "rope_fp16": False}

    def prepare(self, index: int, window: Window) -> Tensors:
        """Audio tokens of a block: local [3, K, D] and global [3, D]."""
        cfg, drawn = CONFIG.dit, torch.Generator().manual_seed(index % 64)
        local = torch.randn(cfg.block_frames, cfg.num_audio_token + 1, cfg.dim, generator=drawn)
        return {"audio_local": local, "audio_global": torch.randn(cfg.block_frames, cfg.dim, generator=drawn)}

    def initial_x(self, index: int, retry: int) -> torch.Tensor:
        cfg = CONFIG.dit
        return torch.randn(cfg.in_dim, cfg.block_frames, *LATENT, generator=torch.Generator().manual_seed(1000 + index))
