"""Modules built from a checkpoint of LiveTalk, each with only what its role runs."""

from __future__ import annotations

from pathlib import Path

import torch

from everface.core.config import Deployment
from everface.core.errors import BadWeights
from everface.core.json_file import read_json
from everface.models.live_avatar.builders import build_image_encoder, build_prompter, check_dtype, load_backbone, select_attention
from everface.models.live_talk.conditions import LiveTalkConditioner
from everface.models.live_talk.names import LOOKAHEAD_FRAMES, LOOKBACK_FRAMES, SAMPLES_PER_FRAME
from everface.networks.transformer.live_talk import LiveTalkAudio, LiveTalkDiT
from everface.networks.uninitialized import uninitialized
from everface.weights.load import load_into, open_checkpoint


def build_dit(weights: Path, deployment: Deployment) -> LiveTalkDiT:
    """The whole transformer on its device, ready for inference. Raises BadInput, BadWeights."""
    check_dtype(deployment)
    checkpoint = open_checkpoint(weights)
    cfg = checkpoint.live_talk.dit
    select_attention(deployment, cfg.head_dim)
    with uninitialized():
        dit = LiveTalkDiT(cfg)
    load_backbone(dit, checkpoint.dit(), deployment)
    return dit


def build_conditioner(weights: Path, lora: Path | None, deployment: Deployment) -> LiveTalkConditioner:
    """What the session's process needs: VAE encoder, audio front end and projections, prompt encoder. Float32."""
    from everface.networks.audio.wav2vec import build_wav2vec2  # transformers takes seconds to import
    from everface.networks.audio.wav2vec_frames import FrameRateWav2Vec2

    checkpoint = open_checkpoint(weights, lora)
    checkpoint.prepare()  # convert here, once, before the stages start and only read
    config = checkpoint.live_talk
    vae, on = build_image_encoder(checkpoint, deployment)
    audio = LiveTalkAudio(config.dit)
    for name, module in audio.named_children():
        load_into(module, checkpoint.dit((f"{name}.",)), f"{name}.", torch.float32)
    model = build_wav2vec2(read_json(checkpoint.audio_folder() / "config.json"), dict(checkpoint.audio()))
    front_end = FrameRateWav2Vec2(model, SAMPLES_PER_FRAME, LOOKBACK_FRAMES, LOOKAHEAD_FRAMES)
    if front_end.channels != config.dit.audio_channels:
        raise BadWeights(
            f"the wav2vec2 model in {checkpoint.audio_folder()} gives {front_end.channels} channels where the transformer wants "
            f"{config.dit.audio_channels}: the parts of {weights} do not belong together"
        )
    prompter = build_prompter(checkpoint, config.text, config.dit)
    return LiveTalkConditioner(config, vae, audio.eval().requires_grad_(False), front_end, prompter, on)
