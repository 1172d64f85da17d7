"""The roles of a pipeline, built from a checkpoint in the process where they run: a denoising step, the decoder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from everface.avatar.parts import build_decoder, build_dit, decoder_dtype, dtype_of
from everface.core.block import Block, Closing, Opening, Tensors
from everface.core.config import Deployment, ModelConfig
from everface.core.errors import Unavailable
from everface.core.memory import keep_freed_memory
from everface.kernels.video.to_rgb import to_rgb
from everface.model.dit import BlockPosition, DiT, cache_shape
from everface.model.layers import AudioKV, TextKV
from everface.model.rope import Rope
from everface.model.schedule import Schedule, sink_distance
from everface.model.vae import VAE, VAEStream
from everface.runtime.cache import KVPool, KVShape, Slot
from everface.runtime.graph import Shelf, Step

WARM_UP_LATENTS = 7  # of the still picture, decoded and thrown away, so that the first real latent finds warm caches
PRIMING = {"sink": "reference", "motion": "motion", "text": "text"}  # what a condition may bring -> which tensor of the opening it is
FINITE = "finite"  # uint8 [roles so far]: 1 where all that the role made was finite


@dataclass(eq=False)
class Seat:
    """What lives as long as a slot of the pool and serves one session after another: constants, and what reads them.
    Nothing in here leads back to the slot or to the seat, so an evicted slot's memory is free at once."""

    rope: Rope
    reading: list[TextKV]  # of the text, a layer each: views of the slot's, and scales that `prime` fills
    heard: list[AudioKV]  # of the block that is being denoised
    hear: Step
    steps: dict[tuple[float, ...], Step] = field(default_factory=dict)  # by noise level before and after


@dataclass
class Viewer:
    """One session on one device. Sink, text keys and sound do not depend on the step, so steps of one device share them."""

    seed: int
    slot: Slot
    seat: Seat
    opened: Tensors  # reference, motion and text as they stand now
    runs: dict[int, int] = field(default_factory=dict)  # step -> blocks that it has run for this session
    primed: int | None = None  # the block whose condition the sink came with, None: the opening
    heard: int | None = None  # the block whose sound is in the seat


class Denoiser:
    """The transformer of one device and the sessions on it, shared by the step roles placed there."""

    def __init__(self, dit: DiT, config: ModelConfig, deployment: Deployment) -> None:
        self.dit, self.config = dit, config
        self.device, self.dtype = torch.device(deployment.device), dtype_of(deployment)
        self.viewers: dict[int, Viewer] = {}
        self.pool = KVPool(self.dtype, self.device, deployment.sessions)
        self.shelf = Shelf(self.device)

    def open(self, opening: Opening, step: int) -> None:
        """Take a slot and fill sink and text keys, for the first step of this device; a ring for each. All or nothing."""
        try:
            fp16, latent = bool(opening.params["rope_fp16"]), tuple(opening.tensors["motion"].shape[-2:])
            slot = self.pool.open(opening.session, step, self.shape(latent, fp16))
            viewer = self.viewers.get(opening.session)
            if viewer is None:
                viewer = Viewer(int(opening.params["seed"]), slot, self.seat(slot, latent, fp16), {})
                self.viewers[opening.session] = viewer
                self.prime(viewer, opening.tensors)
            viewer.runs[step] = 0
        except torch.OutOfMemoryError:
            self.close(opening.session)
            raise Unavailable(f"a session does not fit on {self.device}: close another or take a smaller picture") from None
        except BaseException:
            self.close(opening.session)
            raise

    def close(self, session: int) -> None:
        self.viewers.pop(session, None)
        self.pool.close(session)

    def shape(self, latent: tuple[int, ...], fp16: bool) -> KVShape:
        cfg = self.dit.cfg
        (layers, ring, heads, width), (_, sink, _, _) = cache_shape(cfg, *latent)
        return KVShape(layers, ring, sink, cfg.text_len, heads, width, self.dit.quantized_dtype, kind=(latent, fp16))

    def seat(self, slot: Slot, latent: tuple[int, ...], fp16: bool) -> Seat:
        """That of the slot, made when the slot is new."""
        if not isinstance(slot.kept.get("seat"), Seat):
            dit, cfg = self.dit, self.dit.cfg
            rows, cols = latent[0] // cfg.patch_size[1], latent[1] // cfg.patch_size[2]
            local = torch.zeros(cfg.block_frames, cfg.num_audio_token + 1, cfg.dim, dtype=self.dtype, device=self.device)
            sound = {"local_FKD": local, "global_FD": torch.zeros_like(local[:, 0])}
            heard = dit.audio_kv(**sound)
            kept = [t for one in heard for t in one]

            def hear(_: object, **sound: torch.Tensor) -> tuple[torch.Tensor, ...]:
                for place, new in zip(kept, (t for one in dit.audio_kv(**sound) for t in one), strict=True):
                    place.copy_(new)
                return ()

            reading = [TextKV(k[None], v[None], torch.ones(1, device=self.device)) for k, v in zip(*slot.text, strict=True)]
            slot.kept["seat"] = Seat(dit.rope((rows, cols), fp16=fp16), reading, heard, Step(hear, sound, self.shelf))
        seat = slot.kept["seat"]
        assert isinstance(seat, Seat)
        return seat

    def prime(self, viewer: Viewer, brought: Tensors) -> None:
        """Fill sink and text keys in place, from what is brought anew and what is known: every step of this device sees them."""
        viewer.opened = viewer.opened | {k: self.onto(v) for k, v in brought.items()}
        known, slot, fp16 = viewer.opened, viewer.slot, viewer.seat.rope.fp16
        text_kv = self.dit.text_kv(self.dit.embed_text(known["text"]))
        sink = self.dit.prefill_sink(known["reference"], known["motion"], text_kv, rope_fp16=fp16)
        slot.prime(*sink)
        for kept, new in zip(viewer.seat.reading, self.dit.stream_text_kv(text_kv), strict=True):
            for place, tensor in zip(kept, new, strict=True):
                place.copy_(tensor)

    def follow(self, viewer: Viewer, block: Block) -> None:
        """Bring the viewer's sink, text and sound to this block, once for all the steps of this device."""
        brought = {PRIMING[name]: tensor for name, tensor in block.condition.items() if name in PRIMING}
        if brought and viewer.primed != block.index:
            self.prime(viewer, brought)
            viewer.primed = block.index
        if viewer.heard != block.index:
            sound = block.condition["audio_local"], block.condition["audio_global"]
            viewer.seat.hear.run(local_FKD=self.onto(sound[0]), global_FD=self.onto(sound[1]))
            viewer.heard = block.index

    def onto(self, tensor: torch.Tensor) -> torch.Tensor:
        """On this device and in its dtype. To a GPU by way of pinned memory, so that nobody waits for the copy."""
        if self.device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, self.dtype, non_blocking=True)


class StepRole:
    """One denoising step of every session: its own KV ring at its own noise level.

    The slot of the ring goes by how many blocks this step has run for the session, so a session whose first block is not block 0, or
    which lost some to an interruption, attends to nothing that was not written. Rotations go by the block's own number.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, step: int) -> None:
        self.denoiser, self.step = denoiser, step
        self.sigmas = schedule.sigmas[step], schedule.sigmas[step + 1]
        with torch.inference_mode():
            self.mod = denoiser.dit.modulations(denoiser.dit.time(schedule.timesteps[step]))
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
        d.follow(viewer, block)
        run, viewer.runs[self.step] = viewer.runs[self.step], viewer.runs[self.step] + 1
        first, sink, start, used = self.place(viewer, block, run)
        x, finite = self.captured(viewer, block.x).run(used, x=d.onto(block.x), first=first, sink=sink, start=start)
        kept = dict(block.condition)
        if self.last:  # the decoder needs no audio; the session waits for the first clean latent to make it the new sink
            kept = {"clean": x[:, :1].float().cpu()} if block.index == 0 else {}
        return replace(block, x=x, condition=kept | noted(block, finite))

    def place(self, viewer: Viewer, block: Block, run: int) -> BlockPosition:
        """Where the block stands, the `run`-th of this step."""
        dit = self.denoiser.dit
        return dit.block_position(dit.grid(block.x), block.index, sink_distance(viewer.seed, block.index, self.step), run)

    def captured(self, viewer: Viewer, x: torch.Tensor) -> Step:
        """This step over the viewer's caches."""
        key, steps = (*self.sigmas, float(self.step)), viewer.seat.steps
        if key not in steps:
            d, rope, reading, heard = self.denoiser, viewer.seat.rope, viewer.seat.reading, viewer.seat.heard
            dit, cache, mod, sigmas = d.dit, viewer.slot.cache(self.step), self.mod, self.sigmas

            def step(used: int, x: torch.Tensor, **place: Any) -> tuple[torch.Tensor, ...]:
                x = dit.step(x, *sigmas, mod, reading, heard, cache, rope, BlockPosition(**place, used=used))
                return x, all_finite(x)

            places = {n: torch.zeros((), dtype=torch.int64, device=d.device) for n in ("first", "sink", "start")}
            steps[key] = Step(step, {"x": torch.zeros_like(x, dtype=d.dtype, device=d.device), **places}, d.shelf)
        return steps[key]

    def close(self, closing: Closing) -> None:
        self.denoiser.close(closing.session)


class DecodeRole:
    """The streaming decoder of every session: three latents in, twelve uint8 frames out."""

    def __init__(self, vae: VAE, deployment: Deployment) -> None:
        self.vae = vae
        self.device, self.dtype = torch.device(deployment.device), decoder_dtype(deployment)
        self.to_host = deployment.frames == "host"
        self.streams: dict[int, VAEStream] = {}

    def open(self, opening: Opening) -> None:
        with torch.inference_mode():
            motion_16Thw = opening.tensors["motion"].to(self.device, self.dtype)
            self.streams[opening.session] = self.vae.warm_up(motion_16Thw[None, :, :WARM_UP_LATENTS])

    def run(self, block: Block) -> Block:
        with torch.inference_mode():
            z_16Fhw = block.x.to(self.device, self.dtype)
            video_3THW = self.vae.decode_stream(z_16Fhw[None], self.streams[block.session])[0]
            condition = block.condition | noted(block, all_finite(video_3THW))
            frames_THW3 = to_rgb(video_3THW)
            if self.to_host:
                frames_THW3 = frames_THW3.cpu()
            elif frames_THW3.is_cuda:
                torch.cuda.current_stream(self.device).synchronize()  # whoever takes them is on another stream
            return replace(block, x=frames_THW3, condition=condition)

    def close(self, closing: Closing) -> None:
        self.streams.pop(closing.session, None)


def all_finite(x: torch.Tensor) -> torch.Tensor:
    """uint8 [1]: whether every element is; it stays on the device."""
    return torch.isfinite(x).all().to(torch.uint8)[None]


def noted(block: Block, finite_1: torch.Tensor) -> Tensors:
    """The block's notes on what was finite, with this role's added."""
    before = block.condition.get(FINITE)
    return {FINITE: finite_1 if before is None else torch.cat((before.to(finite_1.device, non_blocking=True), finite_1))}


_denoisers: dict[str, Denoiser] = {}  # one transformer a process, whatever the number of steps placed in it


def build_role(name: str, spec: dict[str, Any]) -> StepRole | DecodeRole:
    """The pipeline's factory: `step0`.. or `decode`, from a JSON-able spec. Builds only what this role runs."""
    deployment = Deployment(**{**spec["deployment"], "device": spec.get("device", spec["deployment"]["device"])})
    weights, lora = Path(spec["weights"]), Path(spec["lora"]) if spec["lora"] else None
    if deployment.device == "cpu":
        keep_freed_memory()
    if name == "decode":
        return DecodeRole(build_decoder(weights, deployment), deployment)
    key = repr((weights, lora, deployment))
    if key not in _denoisers:
        config, dit = build_dit(weights, lora, deployment)
        _denoisers[key] = Denoiser(dit, config, deployment)
    return StepRole(_denoisers[key], Schedule.for_sampler(spec["sampler"]), int(name.removeprefix("step")))
