"""One stream from the product's own roles, all in this process and without a scheduler. Every block is denoised, but only the blocks of
interest are decoded. A `StreamVariant` changes it for ablation; with the default, latents and frames are those of a session to the bit.

    model = OfflineModel(weights, deployment)
    with model.stream(image_3HW, StreamConfig()) as stream:
        stream.start_decoding()
        for block in stream.blocks(audio): frames_THW3 = stream.decode(block)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import Deployment, ModelConfig, StreamConfig, VAEConfig
from everface.core.memory import keep_freed_memory
from everface.kernels.fused.flow_step import flow_step
from everface.models.live_avatar.block_conditions import BlockConditions
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, build_conditioner, build_decoder, build_dit, build_mouth_finder
from everface.models.live_avatar.conditions import Noise
from everface.models.live_avatar.model import block_format, refresh_after
from everface.models.live_avatar.names import HEAD, POSE
from everface.models.live_avatar.roles import DecodeRole, Denoiser, SessionState, StepRole
from everface.networks.motion import ARTICULATORS, compensated, face_values, pose_of, with_mouth
from everface.networks.transformer.dit import BlockPosition
from everface.networks.transformer.rope import SINK_TIME
from everface.networks.transformer.schedule import Schedule, sigmas
from everface.runtime.audio_buffer import AudioBuffer
from everface.runtime.messages import Block, CloseSession, OpenSession
from everface.train.data.clips import IMAGE_SIZE
from everface.train.pretrain.plans import StreamingPlan


@dataclass(frozen=True)
class StreamVariant(StreamingPlan):
    """How a stream is made."""

    skip_null: bool = False  # the product's other sampler, without the last step

    @property
    def schedule(self) -> Schedule:
        levels = sigmas(self.steps)
        return Schedule.from_sigmas((*levels[:-2], 0.0) if self.skip_null else levels)


class VariantStep(StepRole):
    """A denoising step. Its reference may be at a fixed position, and its KV ring may be shared by all steps."""

    def __init__(self, denoiser: Denoiser, variant: StreamVariant, step: int) -> None:
        super().__init__(denoiser, variant.schedule, step)
        self.variant = variant

    def open(self, opening: OpenSession) -> None:
        super().open(opening)
        if self.variant.history != "own":
            self.denoiser.sessions[opening.session].caches.share_ring(self.step, 0)

    def position(self, state: SessionState, block: Block, run: int) -> BlockPosition:
        position = super().position(state, block, run)
        return position if self.variant.rolling else position._replace(sink=SINK_TIME)


class HistoryPass:
    """Another pass after the last step, clean or at a fixed level, which writes into the shared ring what later blocks attend to."""

    def __init__(self, last: VariantStep) -> None:
        self.last, dit = last, last.denoiser.dit
        self.sigma = last.variant.past_sigma
        with torch.inference_mode():
            self.mod = dit.modulations(dit.time(1000 * self.sigma))

    @torch.inference_mode()
    def keep(self, block: Block, pose_16Fhw: Tensor | None) -> None:
        """`block` is the result of the last step, which leaves the block's pose out."""
        last, x0 = self.last, block.x
        state = last.denoiser.sessions[block.session]
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(state.seed + 1_000_003 * block.index)).to(x0)
        position = last.position(state, block, state.runs[last.step] - 1)
        pose = None if pose_16Fhw is None else last.denoiser.onto(pose_16Fhw)
        x, slot, cache = flow_step(x0, noise - x0, 0.0, self.sigma), state.slot_state, state.caches.cache(last.step)
        last.denoiser.dit.tokens(x, self.mod, slot.text, slot.audio, cache, slot.rope, position, pose)


def image_size(config: ModelConfig) -> int:
    """Pixels of a square model's side; of weights that follow the image, those of drawn characters."""
    return config.size[0] if config.size else IMAGE_SIZE


class OfflineModel:
    """A model loaded once, for one stream after another."""

    def __init__(self, weights: Path | None, deployment: Deployment) -> None:
        self.weights, self.deployment = Path(weights or DEFAULT_WEIGHTS), deployment
        if deployment.device == "cpu":
            keep_freed_memory()
        if deployment.threads:
            torch.set_num_threads(deployment.threads)
        self.conditioner = build_conditioner(self.weights, None, deployment)
        self.config, self.dit = build_dit(self.weights, None, deployment)
        self.decoder = DecodeRole(build_decoder(self.weights, deployment), deployment, self.config, build_mouth_finder(self.weights, deployment))

    @property
    def block_frames(self) -> int:
        """Video frames per block."""
        return self.conditioner.block_frames

    @property
    def image_size(self) -> int:
        """Pixels, square."""
        return image_size(self.config)

    @property
    def memory_blocks(self) -> int:
        """So many blocks before a window bring the decoder into the state that the whole stream would."""
        return math.ceil(decoder_memory(self.config.vae) / self.config.dit.block_frames)

    def stream(self, image_3HW: Tensor, config: StreamConfig, variant: StreamVariant | None = None) -> OfflineStream:
        return OfflineStream(self, image_3HW, config, variant or StreamVariant())


class OfflineStream:
    """One stream; a model has at most one at a time. Leaving the `with` frees its caches."""

    def __init__(self, model: OfflineModel, image_3HW: Tensor, config: StreamConfig, variant: StreamVariant) -> None:
        self.model, dit = model, model.config.dit
        denoiser = Denoiser(model.dit, model.config, model.deployment)  # one per stream: captured steps are bound to its rings
        self.roles = [VariantStep(denoiser, variant, s) for s in range(variant.schedule.steps)]
        self.history = HistoryPass(self.roles[-1]) if variant.history != "own" else None
        tensors = model.conditioner.initial_state(image_3HW, config)
        self.opening = OpenSession(1, tensors, {"seed": config.seed, "rope_fp16": False})
        for role in self.roles:
            role.open(self.opening)
        _, _, h, w = tensors["reference"].shape
        self.noise = Noise(config.seed, (dit.in_dim, h, w), dit.block_frames, dit.window_blocks, model.config.noise_correlation)
        self.refresh_at = refresh_after(model.config, config) if variant.refresh else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for role in (*self.roles, self.model.decoder):
            role.close(CloseSession(self.opening.session))

    def blocks(self, audio: Iterable[Tensor], face_CT: Tensor | None = None) -> Iterator[Block]:
        """Denoised blocks: `x` the latents [16, n, h, w], `frames` the number of video frames that have audio. The audio is mono at
        16 kHz, in pieces of any length; it may be endless. For a model that listens a piece may be [2, S], the second row the user's.

        face_CT: of a model with motion, features of `networks.motion.FACE`, in place of the motion that is drawn and the mouth that is read from audio; the
        head is still then."""
        format = block_format(self.model.conditioner)
        buffer = AudioBuffer(format)
        conditions = BlockConditions(self.model.conditioner, format, "everface", int(self.opening.params["seed"]))
        index, clean = 0, dict[str, Tensor]()
        for pcm_S in chain(audio, [None]):
            if pcm_S is None:
                buffer.ended = True
            else:
                buffer.add(torch.stack([pcm_S, torch.zeros_like(pcm_S)]) if format.user_audio and pcm_S.dim() == 1 else pcm_S)
            while (window := buffer.take_window(index, 0)) is not None:
                condition = conditions.prepare(index, window) | (clean if index == self.refresh_at else {})
                if face_CT is not None:
                    of_block_CT = block_of(face_CT, index, self.model.block_frames)
                    mouth_AT, lips = face_values(of_block_CT).T[-len(ARTICULATORS) :], self.model.config.lips
                    condition |= {POSE: pose_of(compensated(of_block_CT, lips)), HEAD: with_mouth(torch.zeros_like(condition[HEAD]), mouth_AT, lips)}
                x, header = self.noise(index), (self.opening.session, 0, index, window.pts, window.frames)
                block = Block(*header, x, condition, window.last)
                for role in self.roles:
                    block = role.run(block)
                if self.history is not None:
                    self.history.keep(block, condition.get(POSE))
                if index == 0:
                    clean = {"sink": block.condition["clean"]}
                yield block
                index += 1

    def start_decoding(self, before: Iterable[Block] = ()) -> None:
        """Decode from the stream's first block on, or from the one after `before`, of which `model.memory_blocks` are enough."""
        self.model.decoder.close(CloseSession(self.opening.session))
        self.model.decoder.open(self.opening)
        for block in before:
            self.model.decoder.run(block)

    def decode(self, block: Block) -> Tensor:
        """The block's uint8 frames [T, H, W, 3]. Blocks must come in order."""
        return self.model.decoder.run(block).x[: block.frames]


def block_of(face_CT: Tensor, index: int, frames: int) -> Tensor:
    """[C, frames] of block `index`; beyond the end the last one stands."""
    part_CT = face_CT[:, frames * index : frames * (index + 1)]
    return F.pad(part_CT[None], (0, frames - part_CT.shape[1]), mode="replicate")[0]


def decoder_memory(config: VAEConfig) -> int:
    """Latents before a frame that the decoder's output depends on: each causal convolution sees two frames of its own rate back."""
    latents, rate = 2.0 + 2 * 4, 1  # the first convolution, two residual blocks of two
    for blocks, doubles in zip(config.decoder_blocks, (*config.temperal_downsample[::-1], False), strict=True):
        latents += 4 * blocks / rate
        if doubles:
            latents, rate = latents + 2 / rate, 2 * rate
    return math.ceil(latents + 2 / rate)
