"""The roles of a pipeline: a denoising step, the decoder. `role_factory` builds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from everface.core.config import Deployment, ModelConfig
from everface.core.errors import Unavailable
from everface.core.regions import cells
from everface.kernels.video.to_rgb import to_rgb
from everface.models.live_avatar.builders import decoder_dtype, dtype_of
from everface.models.live_avatar.caches import KVLayout, SessionCaches, open_caches
from everface.models.live_avatar.names import (
    CLEAN,
    DISSOLVE,
    FINITE,
    FORWARDS,
    HEAD,
    IMAGE,
    POSE,
    SHOT,
    SINK,
    SPEAKERS,
    SURROUND,
)
from everface.networks.transformer.dit import BlockPosition, DiT, cache_shape
from everface.networks.transformer.layers import KV, AudioKV, TextKV
from everface.networks.transformer.rope import Rope
from everface.networks.transformer.schedule import Schedule, sink_distance
from everface.networks.video.head_warp import warp_head
from everface.networks.video.mouth_finder import MouthFinder
from everface.networks.video.still_detail import StillDetail
from everface.networks.video.vae import VAE, VAEStream
from everface.runtime.cache_pool import CachePool
from everface.runtime.cuda_graph import CapturedGraph, GraphPool
from everface.runtime.messages import Block, CloseSession, OpenSession, Tensors

WARM_UP_AT_ONCE = 3
WARM_UP_LATENTS = 7  # of the still picture, decoded and thrown away, so that the first real latent finds warm caches
PRIMING = {SINK: "reference", "motion": "motion", "text": "text"}  # what a condition may bring -> which tensor of the opening it is


@dataclass(eq=False)
class SlotState:
    """What lives as long as a slot of the pool and serves one session after another: constants, and what reads them.
    Nothing in here leads back to the slot or to the slot_state, so an evicted slot's memory is free at once."""

    rope: Rope
    text: list[TextKV]  # of the prompt, one a layer: views of the slot's tensors, and scales that `prime` fills
    audio: list[AudioKV]  # of the block being denoised
    speakers_AFP1: torch.Tensor | None  # masks of the session's speakers, if there are several
    encode_audio: CapturedGraph
    steps: dict[tuple[float, ...], CapturedGraph] = field(default_factory=dict)  # by noise level before and after


@dataclass
class SessionState:
    """One session on one device. Sink, text keys and sound do not depend on the step, so steps of one device share them."""

    seed: int
    caches: SessionCaches
    slot_state: SlotState
    opened: Tensors  # reference, motion and text as they stand now
    runs: dict[int, int] = field(default_factory=dict)  # step -> blocks that it has run for this session
    primed: int | None = None  # the block whose condition the sink came with, None: the opening
    audio_of: int | None = None  # the block whose audio is in the slot state
    forwards: int | None = None  # of a block, where a sampler other than the pipeline's was chosen
    shots: dict[int, int] = field(default_factory=dict)  # step -> the shot that its ring is of, as the length of SHOT


class Denoiser:
    """The transformer of one device and the sessions on it, shared by the step roles placed there."""

    def __init__(self, dit: DiT, config: ModelConfig, deployment: Deployment) -> None:
        self.dit, self.config = dit, config
        self.device, self.dtype = torch.device(deployment.device), dtype_of(deployment)
        self.sessions: dict[int, SessionState] = {}
        self.pool = CachePool(self.device, deployment.sessions)
        self.graph_pool = GraphPool(self.device)

    def open(self, opening: OpenSession, step: int) -> None:
        """Take a slot and fill sink and text keys, for the first step of this device; a ring for each. All or nothing."""
        try:
            fp16, latent = bool(opening.params["rope_fp16"]), tuple(opening.tensors["motion"].shape[-2:])
            speakers = len(opening.tensors.get(SPEAKERS, ()))
            caches = open_caches(self.pool, opening.session, step, self.layout(latent, fp16, speakers))
            state = self.sessions.get(opening.session)
            if state is None:
                state = SessionState(int(opening.params["seed"]), caches, self.slot_state(caches, latent, fp16, speakers), {})
                self.sessions[opening.session] = state
                self.prime(state, opening.tensors)
                if state.slot_state.speakers_AFP1 is not None:
                    state.slot_state.speakers_AFP1.copy_(opening.tensors[SPEAKERS])
            state.runs[step] = 0
        except torch.OutOfMemoryError:
            self.close(opening.session)
            raise Unavailable(f"a session does not fit on {self.device}: close another or take a smaller picture") from None
        except BaseException:
            self.close(opening.session)
            raise

    def close(self, session: int) -> None:
        self.sessions.pop(session, None)
        self.pool.close(session)

    def layout(self, latent: tuple[int, ...], fp16: bool, speakers: int = 0) -> KVLayout:
        cfg = self.dit.cfg
        (layers, ring, heads, width), (_, sink, _, _) = cache_shape(cfg, *latent)
        return KVLayout(layers, ring, sink, cfg.text_len, heads, width, self.dtype, self.dit.quantized_dtype, kind=(latent, fp16, speakers))

    def slot_state(self, caches: SessionCaches, latent: tuple[int, ...], fp16: bool, speakers: int) -> SlotState:
        """That of the slot, made when the slot is new. `speakers`: 0 is one without a region."""
        attached = caches.slot.attached
        if not isinstance(attached.get("state"), SlotState):
            dit, cfg = self.dit, self.dit.cfg
            rows, cols = latent[0] // cfg.patch_size[1], latent[1] // cfg.patch_size[2]
            size = max(1, speakers), cfg.block_frames, cfg.num_audio_token + 1, cfg.dim
            local = torch.zeros(size, dtype=self.dtype, device=self.device)
            inputs = {"local_AFKD": local, "global_AFD": torch.zeros_like(local[:, :, 0])}
            masks = torch.zeros(speakers, 1, rows * cols, 1, dtype=self.dtype, device=self.device) if speakers else None
            audio = dit.audio_kv(**inputs)
            kept = [t for one in audio for t in one]

            def encode(_: object, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
                for place, new in zip(kept, (t for one in dit.audio_kv(**inputs) for t in one), strict=True):
                    place.copy_(new)
                return ()

            text = [TextKV(k[None], v[None], torch.ones(1, device=self.device)) for k, v in zip(*caches.text, strict=True)]
            graph = CapturedGraph(encode, inputs, self.graph_pool)
            attached["state"] = SlotState(dit.rope((rows, cols), fp16=fp16), text, audio, masks, graph)
        slot_state = attached["state"]
        assert isinstance(slot_state, SlotState)
        return slot_state

    def prime(self, state: SessionState, brought: Tensors) -> None:
        """Fill sink and text keys in place, from what is brought and what is known: every step of this device sees them. A layer at a
        time, because a second copy of all layers would take as much as half a ring."""
        state.opened = state.opened | {k: self.onto(v) for k, v in brought.items()}
        known, fp16, dit = state.opened, state.slot_state.rope.fp16, self.dit
        kept_text = "text" not in brought and dit.cfg.text_len > 1  # of a single key the slot keeps something else

        def text_kv() -> Iterator[KV]:
            if kept_text:
                yield from ((kept.k_1KHd, kept.v_1KHd) for kept in state.slot_state.text)
                return
            for layer, kv in enumerate(dit.text_layers(dit.embed_text(known["text"]))):
                for place, tensor in zip(state.slot_state.text[layer], dit.stream_text_layer(layer, kv), strict=True):
                    place.copy_(tensor)
                yield kv

        dit.write_sink(known["reference"], known["motion"], text_kv(), state.caches.set_sink, rope_fp16=fp16)

    def follow(self, state: SessionState, block: Block) -> None:
        """Bring the state's sink, text and sound to this block, once for all the steps of this device."""
        brought = {PRIMING[name]: tensor for name, tensor in block.condition.items() if name in PRIMING}
        if brought and state.primed != block.index:
            self.prime(state, brought)
            state.primed = block.index
        if FORWARDS in block.condition:
            state.forwards = len(block.condition[FORWARDS])
        if state.audio_of != block.index:
            local, total = block.condition["audio_local"], block.condition["audio_global"]
            state.slot_state.encode_audio.run(local_AFKD=self.onto(local), global_AFD=self.onto(total))
            state.audio_of = block.index

    def onto(self, tensor: torch.Tensor) -> torch.Tensor:
        """On this device and in its dtype. To a GPU by way of pinned memory, so that nobody waits for the copy."""
        if self.device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, self.dtype, non_blocking=True)


class StepRole:
    """One denoising step of every session: its own KV ring at its own noise level.

    The slot of the ring goes by how many blocks this step has run for the session's shot, so a new shot attends to no block before it, and a session whose first block is not block 0, or
    which lost some to an interruption, attends to nothing that was not written. Rotations go by the block's own number.

    A session may ask for fewer forwards than there are steps: the last of them goes straight to noise level 0, and the steps behind it pass
    blocks on. Their rings begin again afterwards, because what they hold is then farther away than the model has ever seen.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, step: int) -> None:
        self.denoiser, self.step = denoiser, step
        self.sigmas, self.steps = schedule.sigmas[step : step + 2], len(schedule.timesteps)
        with torch.inference_mode():
            self.mod = denoiser.dit.modulations(denoiser.dit.time(schedule.timesteps[step]))
        self.last = step == self.steps - 1
        self.kept = denoiser.dit.kept_keys[step] if denoiser.dit.kept_keys else None

    def open(self, opening: OpenSession) -> None:
        with torch.inference_mode():
            self.denoiser.open(opening, self.step)

    def run(self, block: Block) -> Block:
        with torch.inference_mode():
            return self._run(block)

    def _run(self, block: Block) -> Block:
        d = self.denoiser
        state = d.sessions[block.session]
        d.follow(state, block)
        forwards, begins = state.forwards or self.steps, begins_shot(block, state.shots, self.step)
        if begins:
            state.runs[self.step] = 0
        if self.step < forwards:
            run, state.runs[self.step] = state.runs[self.step], state.runs[self.step] + 1
            first, sink, start, used = self.position(state, block, run)
            inputs = {name: d.onto(tensor) for name, tensor in (("x", block.x), (POSE, block.condition.get(POSE))) if tensor is not None}
            graph = self.captured(state, inputs, self.step == forwards - 1)
            x, finite = graph.run(used, **inputs, first=first, sink=sink, start=start)
        else:
            x, state.runs[self.step] = block.x, 0
            finite = torch.ones(1, dtype=torch.uint8, device=d.device)
        kept = dict(block.condition)
        if self.last:  # the decoder needs no audio; the session waits for a shot's first clean latent to make it the new sink
            of_shot = (SHOT, DISSOLVE, IMAGE, SURROUND, "motion") if SHOT in kept or IMAGE in kept else ()
            kept = {name: kept[name] for name in (*of_shot, HEAD) if name in kept}
            if block.index == 0 or begins:
                kept[CLEAN] = x[:, :1].float().cpu()
        return replace(block, x=x, condition=kept | noted(block, finite))

    def position(self, state: SessionState, block: Block, run: int) -> BlockPosition:
        """Where the block stands, the `run`-th of this step."""
        dit = self.denoiser.dit
        return dit.block_position(dit.grid(block.x), block.index, sink_distance(state.seed, block.index, self.step), run)

    def captured(self, state: SessionState, inputs: Tensors, final: bool) -> CapturedGraph:
        """This step over the state's caches. `final`: it goes to noise level 0. inputs: x and, of models that take one, the pose."""
        sigmas = (self.sigmas[0], 0.0 if final else self.sigmas[1])
        key, steps = (*sigmas, float(self.step)), state.slot_state.steps
        if key not in steps:
            d, rope, text, audio = self.denoiser, state.slot_state.rope, state.slot_state.text, state.slot_state.audio
            masks = state.slot_state.speakers_AFP1
            dit, cache, mod = d.dit, state.caches.cache(self.step, self.kept), self.mod

            def step(used: int, x: torch.Tensor, pose: torch.Tensor | None = None, **position: Any) -> tuple[torch.Tensor, ...]:
                x = dit.step(x, *sigmas, mod, text, audio, cache, rope, BlockPosition(**position, used=used), pose, masks)
                return x, all_finite(x)

            places = {n: torch.zeros((), dtype=torch.int64, device=d.device) for n in ("first", "sink", "start")}
            steps[key] = CapturedGraph(step, {name: torch.zeros_like(tensor) for name, tensor in inputs.items()} | places, d.graph_pool)
        return steps[key]

    def close(self, closing: CloseSession) -> None:
        self.denoiser.close(closing.session)


def whole_image(z_16Fhw: torch.Tensor, around_161hw: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Latents of a region in those of the still image, which are around it; of a model without a region, as they are."""
    if config.region is None:
        return z_16Fhw
    whole_16Fhw = around_161hw.expand(-1, z_16Fhw.shape[1], -1, -1).clone()
    rows, columns = cells(config.region, whole_16Fhw.shape[-2:], config.dit.patch_size[1])
    whole_16Fhw[..., rows, columns] = z_16Fhw
    return whole_16Fhw


class DecodeRole:
    """The streaming decoder of every session: three latents in, twelve uint8 frames out.

    Of a model that makes a region only (`ModelConfig.region`), latents of the still image are around what comes in.
    """

    def __init__(self, vae: VAE, deployment: Deployment, config: ModelConfig | None = None, mouth_finder: MouthFinder | None = None) -> None:
        self.vae, self.config, self.mouth_finder = vae, config, mouth_finder
        self.device, self.dtype = torch.device(deployment.device), decoder_dtype(deployment)
        self.to_host = deployment.frames == "host"
        self.streams: dict[int, VAEStream] = {}
        self.shots: dict[int, int] = {}  # session -> the shot that its stream is of
        self.shown_HW3: dict[int, torch.Tensor] = {}  # session -> its last frame
        self.details: dict[int, StillDetail] = {}  # session -> that of its image, where the model has motion
        self.mouths: dict[int, tuple[float, float]] = {}  # session -> where its image's mouth is, where that can be found
        self.around: dict[int, torch.Tensor] = {}  # session -> [C, 1, h, w] of its image, where the model makes a region only

    def open(self, opening: OpenSession) -> None:
        with torch.inference_mode():
            self.streams[opening.session] = self.warm_up(opening.session, opening.tensors)

    def warm_up(self, session: int, image: Tensors) -> VAEStream:
        """A stream that has shown an image, by its `motion`; and, where they are there, what is around the region, and its detail."""
        still_16Thw, stream = image.get(SURROUND, image["motion"])[:, :WARM_UP_LATENTS].to(self.device, self.dtype), self.vae.stream(1)
        if SURROUND in image:
            self.around[session] = still_16Thw[:, 1:]
            still_16Thw = torch.cat([still_16Thw[:, :1], self.around[session].expand(-1, WARM_UP_LATENTS - 1, -1, -1)], 1)
        still_3THW = self.vae.decode_stream(still_16Thw[None, :, :1], stream)[0]
        for piece_16Thw in still_16Thw[:, 1:].split(WARM_UP_AT_ONCE, 1):  # as many as a block has: more would take more memory than any block
            still_3THW = self.vae.decode_stream(piece_16Thw[None], stream)[0]
        if IMAGE in image:
            image_3HW = image[IMAGE].to(self.device) / 127.5 - 1
            self.details[session] = StillDetail(image_3HW, still_3THW[:, -1])
            if self.mouth_finder is not None:
                right, down = self.mouth_finder(image_3HW[None])[0].tolist()
                self.mouths[session] = right, down
        return stream

    def run(self, block: Block) -> Block:
        return next(self.decode(block, block.x.shape[1]))

    def run_parts(self, block: Block) -> Iterator[Block]:
        """A latent a part."""
        return self.decode(block, 1)

    def decode(self, block: Block, latents: int) -> Iterator[Block]:
        """The block in parts of so many latents. The last has what the session waits for."""
        first, total, fading_HW3 = 0, block.x.shape[1], None
        finite_1 = torch.ones(1, dtype=torch.uint8, device=self.device)
        for begin in range(0, total, latents):
            with torch.inference_mode():
                if begin == 0 and begins_shot(block, self.shots, block.session):
                    self.streams[block.session] = self.warm_up(block.session, block.condition)
                    fading_HW3 = self.shown_HW3.get(block.session)
                elif begin == 0 and IMAGE in block.condition:
                    self.warm_up(block.session, block.condition)  # for the detail only
                z_16Fhw = self.whole(block.session, block.x[:, begin : begin + latents].to(self.device, self.dtype))
                video_3THW = self.vae.decode_stream(z_16Fhw[None], self.streams[block.session])[0]
                finite_1 = torch.minimum(finite_1, all_finite(video_3THW))
                condition = noted(block, finite_1)
                if begin + latents >= total:
                    condition |= {name: block.condition[name] for name in (CLEAN,) if name in block.condition}
                if block.session in self.details:
                    video_3THW = self.details[block.session].add(video_3THW)
                if HEAD in block.condition:
                    moved_KT = block.condition[HEAD][:, first : first + video_3THW.shape[1]]
                    video_3THW = warp_head(video_3THW, moved_KT, self.mouths.get(block.session))
                frames_THW3 = to_rgb(video_3THW)
                if fading_HW3 is not None:
                    dissolve(fading_HW3, frames_THW3, block.condition[DISSOLVE].numel() - 1, first)
                if first < block.frames:
                    self.shown_HW3[block.session] = frames_THW3[min(len(frames_THW3), block.frames - first) - 1].clone()
                if self.to_host:
                    frames_THW3 = frames_THW3.cpu()
                elif frames_THW3.is_cuda:
                    torch.cuda.current_stream(self.device).synchronize()  # whoever takes them is on another stream
                part = replace(block, x=frames_THW3, condition=condition, first=first)
                first += len(frames_THW3)
            yield part

    def whole(self, session: int, z_16Fhw: torch.Tensor) -> torch.Tensor:
        """Latents of the whole image."""
        if session not in self.around:
            return z_16Fhw
        assert self.config is not None
        return whole_image(z_16Fhw, self.around[session], self.config)

    def close(self, closing: CloseSession) -> None:
        for kept in (self.streams, self.shots, self.shown_HW3, self.details, self.mouths, self.around):
            kept.pop(closing.session, None)


def begins_shot(block: Block, shots: dict[int, int], key: int) -> bool:
    """Whether the block is the first of a shot other than the one in shots[key], which is brought up to date. It may tell of its shot again."""
    shot = block.condition[SHOT].numel() if SHOT in block.condition else shots.get(key)
    begins, shots[key] = shot != shots.get(key), shot or 0
    return begins


def dissolve(from_HW3: torch.Tensor, frames_THW3: torch.Tensor, count: int, first: int = 0) -> None:
    """Let an image fade out over the first `count` uint8 frames of a shot, in place. first: number of frames_THW3[0] in it."""
    for n in range(first + 1, min(count, first + len(frames_THW3)) + 1):
        frame_HW3 = frames_THW3[n - 1 - first]
        mixed_HW3 = from_HW3.int() * (count + 1 - n) + frame_HW3.int() * n
        frame_HW3.copy_((mixed_HW3 + (count + 1) // 2) // (count + 1))


def all_finite(x: torch.Tensor) -> torch.Tensor:
    """uint8 [1]: whether every element is; it stays on the device."""
    return torch.isfinite(x).all().to(torch.uint8)[None]


def noted(block: Block, finite_1: torch.Tensor) -> Tensors:
    """The block's notes on what was finite, with this role's added."""
    before = block.condition.get(FINITE)
    return {FINITE: finite_1 if before is None else torch.cat((before.to(finite_1.device, non_blocking=True), finite_1))}
