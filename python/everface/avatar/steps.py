"""The roles of a pipeline, built from a checkpoint in the process where they run: a denoising step, the decoder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from everface.avatar.parts import build_decoder, build_dit, dtype_of
from everface.core.block import Block, Closing, KVCache, Opening
from everface.core.config import Deployment, ModelConfig
from everface.model.dit import DiT
from everface.model.layers import KV
from everface.model.schedule import Schedule, sink_distance
from everface.model.vae import VAE, VAEStream

WARM_UP_LATENTS = 7  # of the still picture, decoded and thrown away, so that the first real latent finds warm caches


@dataclass
class Viewer:
    """One session on one device. The sink and the text keys do not depend on the step, so steps of one device share them."""

    seed: int
    rope_fp16: bool
    text_kv: list[KV]
    motion: torch.Tensor
    caches: dict[int, KVCache] = field(default_factory=dict)
    sink_block: int = 0  # the block whose condition the present sink came with


class Denoiser:
    """The transformer of one device and the sessions on it, shared by the step roles placed there."""

    def __init__(self, dit: DiT, config: ModelConfig, deployment: Deployment) -> None:
        self.dit, self.config = dit, config
        self.device, self.dtype = torch.device(deployment.device), dtype_of(deployment)
        self.viewers: dict[int, Viewer] = {}

    def open(self, opening: Opening, step: int) -> None:
        viewer = self.viewers.get(opening.session)
        if viewer is None:
            place = {k: v.to(self.device, self.dtype) for k, v in opening.tensors.items()}
            text_kv = self.dit.text_kv(self.dit.embed_text(place["text"]))
            viewer = Viewer(int(opening.params["seed"]), bool(opening.params["rope_fp16"]), text_kv, place["motion"])
            self.viewers[opening.session] = viewer
            first = self.dit.new_cache(*place["motion"].shape[-2:], dtype=self.dtype, device=self.device)
            viewer.caches[step] = first
            self.prefill(viewer, place["reference"], 0)
        else:
            shared = next(iter(viewer.caches.values()))
            ring = torch.zeros_like(shared.k_LSHd), torch.zeros_like(shared.v_LSHd)
            viewer.caches[step] = replace(shared, k_LSHd=ring[0], v_LSHd=ring[1])

    def prefill(self, viewer: Viewer, reference: torch.Tensor, block_index: int) -> None:
        """Fill the sink from a reference latent, in place: every step of this device sees it."""
        shared = next(iter(viewer.caches.values()))
        k, v = self.dit.prefill_sink(reference, viewer.motion, viewer.text_kv, rope_fp16=viewer.rope_fp16)
        shared.sink_k_LCHd.copy_(k)
        shared.sink_v_LCHd.copy_(v)
        viewer.sink_block = block_index


class StepRole:
    """One denoising step of every session: its own KV ring at its own noise level."""

    def __init__(self, denoiser: Denoiser, schedule: Schedule, step: int) -> None:
        self.denoiser, self.step, self.schedule = denoiser, step, schedule
        with torch.inference_mode():
            self.time = denoiser.dit.time(schedule.timesteps[step])
        self.last = step == len(schedule.timesteps) - 1

    def open(self, opening: Opening) -> None:
        with torch.inference_mode():
            self.denoiser.open(opening, self.step)

    def run(self, block: Block) -> Block:
        with torch.inference_mode():
            return self._run(block)

    def _run(self, block: Block) -> Block:
        d = self.denoiser
        viewer = d.viewers[block.session]
        x = block.x.to(d.device, d.dtype)
        condition = {k: v.to(d.device) for k, v in block.condition.items()}
        if "sink" in condition and viewer.sink_block != block.index:
            d.prefill(viewer, condition["sink"].to(d.dtype), block.index)
        velocity = d.dit(
            x,
            self.time,
            viewer.text_kv,
            (condition["audio_local"].to(d.dtype), condition["audio_global"].to(d.dtype)),
            viewer.caches[self.step],
            block_index=block.index,
            sink_distance=sink_distance(viewer.seed, block.index, self.step),
            rope_fp16=viewer.rope_fp16,
        )
        x = self.schedule.advance(x, velocity, self.step)
        kept = dict(block.condition)
        if self.last:  # the decoder needs no audio; the session waits for the first clean latent to make it the new sink
            kept = {"clean": x[:, :1].float().cpu()} if block.index == 0 else {}
        return replace(block, x=x, condition=kept)

    def close(self, closing: Closing) -> None:
        self.denoiser.viewers.pop(closing.session, None)


class DecodeRole:
    """The streaming decoder of every session: three latents in, twelve uint8 frames out."""

    def __init__(self, vae: VAE, deployment: Deployment) -> None:
        self.vae = vae
        self.device, self.dtype = torch.device(deployment.device), dtype_of(deployment)
        self.streams: dict[int, VAEStream] = {}

    def open(self, opening: Opening) -> None:
        with torch.inference_mode():
            motion_16Thw = opening.tensors["motion"].to(self.device, self.dtype)
            self.streams[opening.session] = self.vae.warm_up(motion_16Thw[None, :, :WARM_UP_LATENTS])

    def run(self, block: Block) -> Block:
        with torch.inference_mode():
            z_16Fhw = block.x.to(self.device, self.dtype)
            frames_THW3 = to_rgb(self.vae.decode_stream(z_16Fhw[None], self.streams[block.session])[0])
        return replace(block, x=frames_THW3.cpu())

    def close(self, closing: Closing) -> None:
        self.streams.pop(closing.session, None)


def to_rgb(video_3THW: torch.Tensor) -> torch.Tensor:
    """-1..1 float [3, T, H, W] to uint8 [T, H, W, 3], truncated as upstream truncates."""
    return video_3THW.float().clamp(-1, 1).add(1).mul(127.5).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


_denoisers: dict[str, Denoiser] = {}  # one transformer a process, whatever the number of steps placed in it


def build_role(name: str, spec: dict[str, Any]) -> StepRole | DecodeRole:
    """The pipeline's factory: `step0`.. or `decode`, from a JSON-able spec. Builds only what this role runs."""
    deployment = Deployment(**spec["deployment"])
    weights, lora = Path(spec["weights"]), Path(spec["lora"]) if spec["lora"] else None
    if name == "decode":
        return DecodeRole(build_decoder(weights, deployment), deployment)
    key = repr((weights, lora, deployment))
    if key not in _denoisers:
        config, dit = build_dit(weights, lora, deployment)
        _denoisers[key] = Denoiser(dit, config, deployment)
    return StepRole(_denoisers[key], Schedule.for_sampler(spec["sampler"]), int(name.removeprefix("step")))
