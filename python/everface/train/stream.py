"""One viewer's stream out of the product's own roles, all in this process and without a desk: every block is denoised, and only what
somebody wants to see is decoded. `Ways` bend it for ablation; left as they are, latents and frames are a session's to the bit.

    studio = Studio(weights, deployment)
    with studio.stream(picture_3HW, StreamConfig()) as stream:
        stream.tune_in()
        for block in stream.blocks(sound): frames_THW3 = stream.show(block)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from everface.models.live_avatar.conditions import Noise
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, build_conditioner, build_decoder, build_dit
from everface.models.live_avatar.roles import DecodeRole, Denoiser, StepRole, Viewer
from everface.runtime.messages import Block, CloseSession, OpenSession
from everface.core.config import SAMPLES_PER_FRAME, Deployment, StreamConfig, VAEConfig
from everface.core.memory import keep_freed_memory
from everface.kernels.fused.flow_step import flow_step
from everface.model.dit import BlockPosition
from everface.model.rope import SINK_TIME
from everface.model.schedule import Schedule, sigmas
from everface.runtime.audio_buffer import Intake
from everface.train.plans import Streamed


@dataclass(frozen=True)
class Ways(Streamed):
    """How a stream is made."""

    skip_null: bool = False  # the product's other sampler: the last of the steps left out

    @property
    def schedule(self) -> Schedule:
        levels = sigmas(self.steps)
        return Schedule.from_sigmas((*levels[:-2], 0.0) if self.skip_null else levels)


class BentStep(StepRole):
    """A step whose reference may stand still, and whose ring may be that of all the others."""

    def __init__(self, denoiser: Denoiser, ways: Ways, step: int) -> None:
        super().__init__(denoiser, ways.schedule, step)
        self.ways = ways

    def open(self, opening: Opening) -> None:
        super().open(opening)
        rings = self.denoiser.viewers[opening.session].slot.rings
        if self.ways.history != "own":
            rings[self.step] = rings[0]

    def place(self, viewer: Viewer, block: Block, run: int) -> BlockPosition:
        place = super().place(viewer, block, run)
        return place if self.ways.rolling else place._replace(sink=SINK_TIME)


class History:
    """One pass more after the last step, clean or at a fixed level, which leaves in the shared ring what later blocks attend to."""

    def __init__(self, last: BentStep) -> None:
        self.last, dit = last, last.denoiser.dit
        self.sigma = last.ways.past_sigma
        with torch.inference_mode():
            self.mod = dit.modulations(dit.time(1000 * self.sigma))

    @torch.inference_mode()
    def keep(self, block: Block) -> None:
        """`block` as it came out of the last step."""
        last, x0 = self.last, block.x
        viewer = last.denoiser.viewers[block.session]
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(viewer.seed + 1_000_003 * block.index)).to(x0)
        place = last.place(viewer, block, viewer.runs[last.step] - 1)
        x, seat, cache = flow_step(x0, noise - x0, 0.0, self.sigma), viewer.seat, viewer.slot.cache(last.step)
        last.denoiser.dit.tokens(x, self.mod, seat.reading, seat.heard, cache, seat.rope, place)


class Studio:
    """A model opened once, for one stream after another."""

    def __init__(self, weights: Path | None, deployment: Deployment) -> None:
        self.weights, self.deployment = Path(weights or DEFAULT_WEIGHTS), deployment
        if deployment.device == "cpu":
            keep_freed_memory()
        if deployment.threads:
            torch.set_num_threads(deployment.threads)
        self.conditioner = build_conditioner(self.weights, None, deployment)
        self.config, self.dit = build_dit(self.weights, None, deployment)
        self.decoder = DecodeRole(build_decoder(self.weights, deployment), deployment)

    @property
    def block_frames(self) -> int:
        """Video frames a block."""
        return self.conditioner.block_frames

    @property
    def memory_blocks(self) -> int:
        """As many blocks before a window leave the decoder in the state that the whole stream would."""
        return math.ceil(reach(self.config.vae) / self.config.dit.block_frames)

    def stream(self, picture_3HW: Tensor, config: StreamConfig, ways: Ways | None = None) -> Stream:
        return Stream(self, picture_3HW, config, ways or Ways())


class Stream:
    """One of them, at most one at a time of a studio; left, its caches are gone."""

    def __init__(self, studio: Studio, picture_3HW: Tensor, config: StreamConfig, ways: Ways) -> None:
        self.studio, dit = studio, studio.config.dit
        denoiser = Denoiser(studio.dit, studio.config, studio.deployment)  # of its own: captured steps are bound to their rings
        self.roles = [BentStep(denoiser, ways, s) for s in range(ways.schedule.steps)]
        self.history = History(self.roles[-1]) if ways.history != "own" else None
        tensors = studio.conditioner.opening(picture_3HW, config)
        self.opening = Opening(1, tensors, {"seed": config.seed, "rope_fp16": False})
        for role in self.roles:
            role.open(self.opening)
        _, _, h, w = tensors["reference"].shape
        self.noise = Noise(config.seed, (dit.in_dim, h, w), dit.block_frames, dit.window_blocks, studio.config.noise_correlation)
        self.refresh_at = dit.window_blocks if ways.refresh and config.refresh_sink else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for role in (*self.roles, self.studio.decoder):
            role.close(Closing(self.opening.session))

    def blocks(self, sound: Iterable[Tensor]) -> Iterator[Block]:
        """Denoised blocks: `x` the latents [16, n, h, w], `frames` how many of its video frames have sound. The sound is mono at
        16 kHz, in pieces of any length; it may be endless."""
        conditioner = self.studio.conditioner
        size = self.studio.block_frames * SAMPLES_PER_FRAME
        intake = Intake(size, conditioner.lookback_samples, conditioner.lookahead_samples)
        index, clean = 0, dict[str, Tensor]()
        for pcm_S in chain(sound, [None]):
            if pcm_S is None:
                intake.ended = True
            else:
                intake.add(pcm_S)
            while (found := intake.window()) is not None:
                window_S, frames, last = found
                condition = conditioner.block(window_S, "everface") | (clean if index == self.refresh_at else {})
                block = Block(self.opening.session, 0, index, intake.at, frames, self.noise(index), condition, last)
                for role in self.roles:
                    block = role.run(block)
                if self.history is not None:
                    self.history.keep(block)
                if index == 0:
                    clean = {"sink": block.condition["clean"]}
                yield block
                intake.advance()
                index += 1

    def tune_in(self, before: Iterable[Block] = ()) -> None:
        """Begin to look: at the stream's first block, or at the one after these, of which `studio.memory_blocks` are enough."""
        self.studio.decoder.close(Closing(self.opening.session))
        self.studio.decoder.open(self.opening)
        for block in before:
            self.studio.decoder.run(block)

    def show(self, block: Block) -> Tensor:
        """Its uint8 frames [T, H, W, 3]. Blocks must come in order."""
        return self.studio.decoder.run(block).x[: block.frames]


def reach(config: VAEConfig) -> int:
    """Latents before a frame that the decoder's output depends on: each causal convolution sees two frames of its own rate back."""
    latents, rate = 2.0 + 2 * 4, 1  # the first convolution, two residual blocks of two
    for blocks, doubles in zip(config.decoder_blocks, (*config.temperal_downsample[::-1], False), strict=True):
        latents += 4 * blocks / rate
        if doubles:
            latents, rate = latents + 2 / rate, 2 * rate
    return math.ceil(latents + 2 / rate)
