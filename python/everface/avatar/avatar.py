"""The public face: an Avatar is weights on devices, a Session is one viewer's endless stream of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Self

import torch

from everface.avatar.conditions import Noise
from everface.avatar.parts import DEFAULT_WEIGHTS, build_conditioner
from everface.core.config import FPS, LATENT_STRIDE, Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.media.picture import fit_picture, read_picture, target_size
from everface.runtime.desk import Desk
from everface.runtime.pipeline import start
from everface.runtime.plan import place
from everface.runtime.session import Session


class Avatar:
    """Loads a checkpoint (the shipped default without one) and opens sessions on it.

    The stages start with the first session, for that session's sampler, and stay up until `close`; sessions share them.
    """

    def __init__(self, weights: Path | None = None, lora: Path | None = None, deployment: Deployment | None = None) -> None:
        self.deployment = deployment or Deployment()
        self.weights, self.lora = Path(weights or DEFAULT_WEIGHTS), lora
        if self.deployment.threads:
            torch.set_num_threads(self.deployment.threads)
        self.conditioner = build_conditioner(self.weights, self.lora, self.deployment)
        self.config = self.conditioner.config
        self.desk: Desk | None = None
        self.sampler = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, picture: str | Path | torch.Tensor, stream: StreamConfig | None = None) -> Session:
        """A session that shows `picture` speaking: a file, or float32 [3, H, W] in -1..1 of the right size.

        Push 16 kHz mono float32 PCM into it, poll uint8 frames [T, H, W, 3] at 25 fps out of it.
        """
        stream = stream or StreamConfig()
        rgb_3HW = picture if isinstance(picture, torch.Tensor) else self.fit(Path(picture), stream)
        desk = self.start(stream)
        conditioner, dit = self.conditioner, self.config.dit
        if stream.prompt and self.config.text.kind == "none":
            log.warning("these weights were trained without text: the prompt has no effect")
        height, width = rgb_3HW.shape[-2:]
        correlation = 0.0 if stream.compat == "official" else self.config.noise_correlation
        latent = (dit.in_dim, height // LATENT_STRIDE[1], width // LATENT_STRIDE[2])
        return Session(
            desk,
            conditioner.opening(rgb_3HW, stream),
            params={"seed": stream.seed, "rope_fp16": stream.compat == "official"},
            frames_per_block=conditioner.block_frames,
            lookback_samples=conditioner.lookback_samples,
            lookahead_samples=conditioner.lookahead_samples,
            condition=lambda _, pcm_S: conditioner.block(pcm_S, stream.compat),
            noise=Noise(stream.seed, latent, dit.block_frames, dit.window_blocks, correlation),
            refresh_at=dit.window_blocks if stream.refresh_sink else None,
        ).wait_open()

    def change(self, session: Session, picture: Path | torch.Tensor, stream: StreamConfig) -> None:
        """Show another picture, of the session's size, or follow another prompt, from the next block on: `stream.prompt` is read."""
        rgb_3HW = picture if isinstance(picture, torch.Tensor) else self.fit(Path(picture), stream)
        opening = self.conditioner.opening(rgb_3HW, stream)
        session.change({"sink": opening["reference"], "motion": opening["motion"], "text": opening["text"]})

    def fit(self, picture: Path, stream: StreamConfig) -> torch.Tensor:
        """Read a picture and bring it to the size of the stream: the model's own, the wanted one, or by its aspect ratio."""
        image_HW3 = read_picture(picture)
        size = stream.size or self.config.size
        if self.config.size and stream.size and tuple(stream.size) != tuple(self.config.size):
            height, width = self.config.size
            raise BadInput(f"these weights were trained at {width}x{height} only: leave --size out, or choose other weights")
        height, width = image_HW3.shape[:2]
        return fit_picture(image_HW3, size or target_size(height, width, stream.area), stream.compat)

    def start(self, stream: StreamConfig) -> Desk:
        """Start the stages, once."""
        if self.desk is None:
            spec = {
                "weights": str(self.weights),
                "lora": str(self.lora) if self.lora else None,
                "sampler": stream.sampler,
                "deployment": asdict(self.deployment),
            }
            plan = place(stream.steps, self.deployment.placement)
            log.info("placement %s, sampler %s, %d fps", plan, stream.sampler, FPS)
            pipeline = start(plan, "everface.avatar.steps:build_role", spec, self.deployment)
            self.desk, self.sampler = Desk(pipeline, self.deployment.sessions), stream.sampler
        elif stream.sampler != self.sampler:
            raise BadInput(f"this avatar runs the {self.sampler} sampler: close it before opening a {stream.sampler} session")
        return self.desk

    def close(self) -> None:
        """Stop the stages. Sessions still open end here."""
        if self.desk is not None:
            self.desk.close()
            self.desk = None
