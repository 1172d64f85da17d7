"""The roles of LiveTalk, built from a checkpoint in the process where they run: all denoising steps, the decoder.

The steps are in series, because a step's keys and values are those that the step before it wrote, until a last forward over the finished latents
leaves the clean ones. Nobody waits for that forward but the next block, so it runs when the block is on its way: `settle`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from everface.core.config import Deployment
from everface.core.errors import Unavailable
from everface.core.memory import keep_freed_memory
from everface.models.live_avatar.builders import build_decoder, dtype_of
from everface.models.live_avatar.caches import KVLayout
from everface.models.live_avatar.names import FINITE
from everface.models.live_avatar.roles import DecodeRole, all_finite, noted
from everface.models.live_talk.builders import build_dit
from everface.models.live_talk.names import AUDIO, DECODE, DENOISE, REFERENCE, STEPS, TEXT
from everface.networks.transformer.layers import KV, TextKV
from everface.networks.transformer.live_talk import BlockPlace, LiveTalkDiT, cache_size
from everface.networks.transformer.rope import Rope
from everface.networks.transformer.schedule import RenoiseSchedule
from everface.networks.video.vae import VAE
from everface.runtime.cache_pool import CachePool, CacheSlot
from everface.runtime.cuda_graph import CapturedGraph, GraphPool
from everface.runtime.messages import Block, CloseSession, OpenSession, Tensors

SETTLE = STEPS  # the key of the forward at t = 0, after those of the steps


@dataclass(eq=False)
class LiveTalkSlot:
    """What lives as long as a slot of the pool and serves one session after another: constants, and the captured forwards."""

    rope: Rope
    text: list[TextKV]  # of the prompt, one a layer: views of the slot's tensors, and scales
    forward: CapturedGraph


@dataclass
class LiveTalkState:
    """One session. Places go by the blocks that this role has run for it, so an interruption leaves no gap in the cache."""

    slot_state: LiveTalkSlot
    latent: torch.Tensor  # of the reference, [16, 1, h, w]
    reference_2PD: torch.Tensor  # its part of the patch embedding
    run: int = 0
    rest: tuple[int, Tensors] | None = None  # slots in use and inputs of the forward that the last block still lacks


class DenoiseRole:
    """All steps of every session, and the cache that they share."""

    def __init__(self, dit: LiveTalkDiT, deployment: Deployment) -> None:
        self.dit = dit
        self.device, self.dtype = torch.device(deployment.device), dtype_of(deployment)
        self.sessions: dict[int, LiveTalkState] = {}
        self.pool, self.graph_pool = CachePool(self.device, deployment.sessions), GraphPool(self.device)
        self.schedule = RenoiseSchedule.of_steps(STEPS)
        with torch.inference_mode():
            self.mods = [dit.modulations(dit.time(t)) for t in (*self.schedule.timesteps, 0.0)]

    def open(self, opening: OpenSession) -> None:
        """Take a slot, fill the text's keys and values. All or nothing."""
        try:
            with torch.inference_mode():
                latent = self.onto(opening.tensors[REFERENCE])
                h, w = latent.shape[-2:]
                slot, used = self.pool.open(opening.session, DENOISE, self.layout(h, w))
                if used:  # a kernel's tile may reach beyond what is written, where its weight is 0: NaN of a failed session would survive that
                    for kept in slot.roles[DENOISE].values():
                        kept.zero_()
                state = LiveTalkState(self.slot_state(slot, latent), latent, self.dit.embed_reference(latent))
                self.sessions[opening.session] = state
                self.set_text(state, opening.tensors[TEXT])
        except torch.OutOfMemoryError:
            self.close(CloseSession(opening.session))
            raise Unavailable(f"a session does not fit on {self.device}: close another or take a smaller image") from None
        except BaseException:
            self.close(CloseSession(opening.session))
            raise

    def close(self, closing: CloseSession) -> None:
        self.sessions.pop(closing.session, None)
        self.pool.close(closing.session)

    def run(self, block: Block) -> Block:
        with torch.inference_mode():
            return self._run(block)

    def settle(self, session: int) -> None:
        """The forward at t = 0 over the latents of the last block: its clean keys and values take the place of the noisy ones."""
        state = self.sessions.get(session)
        if state is not None and state.rest is not None:
            (used, inputs), state.rest = state.rest, None
            with torch.inference_mode():
                state.slot_state.forward.run((SETTLE, used), **inputs)

    def _run(self, block: Block) -> Block:
        state = self.sessions[block.session]
        self.follow(state, block.condition)
        run, state.run = state.run, state.run + 1
        place, noise = self.dit.block_place(self.dit.grid(state.latent), run), self.onto(block.x)
        condition = self.dit.condition(state.reference_2PD, run == 0)
        inputs: Tensors | dict[str, Any] = {"condition": condition, "audio": self.onto(block.condition[AUDIO]), "first": place.first, "start": place.start}
        x = noise[0]
        for step in range(STEPS):
            x = self.begun(state, x, run)
            (x,) = state.slot_state.forward.run((step, place.used), x=x, noise=noise[min(step + 1, STEPS - 1)], **inputs)
        finite, x = all_finite(x), self.begun(state, x, run)
        state.rest = place.used, {**inputs, "x": x, "noise": noise[0]}
        kept = {name: block.condition[name] for name in (REFERENCE,) if name in block.condition}
        return replace(block, x=x, condition=kept | noted(block, finite))

    def begun(self, state: LiveTalkState, x: torch.Tensor, run: int) -> torch.Tensor:
        """x, of a stream's first block with the reference as its first frame."""
        return x if run else torch.cat((state.latent, x[:, 1:]), dim=1)

    def follow(self, state: LiveTalkState, brought: Tensors) -> None:
        """Take over another prompt; with another image the stream begins again."""
        if TEXT in brought:
            self.set_text(state, brought[TEXT])
        if REFERENCE in brought:
            state.latent, state.run = self.onto(brought[REFERENCE]), 0
            state.reference_2PD = self.dit.embed_reference(state.latent)

    def set_text(self, state: LiveTalkState, text_LC: torch.Tensor) -> None:
        """Fill the text's keys and values in place, a layer at a time."""
        for layer, kv in enumerate(self.dit.text_layers(self.dit.embed_text(self.onto(text_LC)))):
            for kept, new in zip(state.slot_state.text[layer], self.dit.stream_text_layer(layer, kv), strict=True):
                kept.copy_(new)

    def layout(self, h: int, w: int) -> KVLayout:
        layers, slots, heads, width = cache_size(self.dit.cfg, h, w)
        return KVLayout(layers, slots, 0, self.dit.cfg.text_len, heads, width, self.dtype, self.dit.quantized_dtype, kind=(h, w))

    def slot_state(self, slot: CacheSlot, latent: torch.Tensor) -> LiveTalkSlot:
        """That of the slot, made when the slot is new."""
        if not isinstance(slot.attached.get("state"), LiveTalkSlot):
            dit, cfg, device = self.dit, self.dit.cfg, self.device
            rope, cache = dit.rope(dit.grid(latent)), (slot.roles[DENOISE]["k"], slot.roles[DENOISE]["v"])
            pairs = zip(slot.shared["text_k"], slot.shared["text_v"], strict=True)
            text = [TextKV(k[None], v[None], torch.ones(1, device=device)) for k, v in pairs]
            x = torch.zeros(cfg.out_dim, cfg.block_frames, *latent.shape[-2:], dtype=self.dtype, device=device)
            rows, columns = dit.grid(latent)
            slots = {
                "x": x,
                "noise": torch.zeros_like(x),
                "condition": x.new_zeros(cfg.block_frames, rows * columns, cfg.dim),
                "audio": x.new_zeros(len(cfg.audio_layers), cfg.block_frames, cfg.dim),
                **{name: torch.zeros((), dtype=torch.int64, device=device) for name in ("first", "start")},
            }
            slot.attached["state"] = LiveTalkSlot(rope, text, CapturedGraph(self.forward_of(text, cache, rope), slots, self.graph_pool))
        state = slot.attached["state"]
        assert isinstance(state, LiveTalkSlot)
        return state

    def forward_of(self, text: list[TextKV], cache: KV, rope: Rope) -> Any:
        """One forward of one session as a function to capture: of a step, with the noise of the next added, or of `settle`."""
        dit, schedule, mods = self.dit, self.schedule, self.mods

        def forward(key: tuple[int, int], x: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor, audio: torch.Tensor, **at: Any) -> tuple[torch.Tensor, ...]:
            step, used = key
            place = BlockPlace(**at, used=used)
            if step == SETTLE:
                dit.tokens(x, condition, mods[step], text, audio, cache, rope, place)
                return ()
            clean = dit.clean(x, schedule.sigmas[step], condition, mods[step], text, audio, cache, rope, place)
            return (schedule.renoise(clean, noise, step + 1) if step + 1 < STEPS else clean,)

        return forward

    def onto(self, tensor: torch.Tensor) -> torch.Tensor:
        """On this device and in its dtype. To a GPU by way of pinned memory, so that nobody waits for the copy."""
        if self.device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, self.dtype, non_blocking=True)


class StreamDecodeRole(DecodeRole):
    """The streaming decoder of every session: a stream's first latent is one frame, every other four."""

    def __init__(self, vae: VAE, deployment: Deployment) -> None:
        super().__init__(vae, deployment)
        self.references: dict[int, torch.Tensor] = {}

    def open(self, opening: OpenSession) -> None:
        self.begin(opening.session, opening.tensors[REFERENCE])

    def begin(self, session: int, reference_16_1hw: torch.Tensor) -> None:
        self.references[session] = reference_16_1hw.to(self.device, self.dtype)
        self.streams[session] = self.vae.stream()

    def decode(self, block: Block, latents: int) -> Iterator[Block]:
        with torch.inference_mode():
            if REFERENCE in block.condition:
                self.begin(block.session, block.condition[REFERENCE])
            if self.streams[block.session].first and block.index:  # its first block, which owes as many frames as any other
                self.streams[block.session] = self.vae.warm_up(self.references[block.session][None])
        yield from super().decode(replace(block, condition={FINITE: block.condition[FINITE]}), latents)

    def close(self, closing: CloseSession) -> None:
        super().close(closing)
        self.references.pop(closing.session, None)


def build_role(name: str, spec: dict[str, Any]) -> DenoiseRole | StreamDecodeRole:
    """The pipeline's factory, from a JSON-able spec. Builds only what this role runs."""
    deployment = Deployment(**{**spec["deployment"], "device": spec.get("device", spec["deployment"]["device"])})
    weights = Path(spec["weights"])
    if deployment.device == "cpu":
        keep_freed_memory()
    if name == DECODE:
        return StreamDecodeRole(build_decoder(weights, deployment), deployment)
    return DenoiseRole(build_dit(weights, deployment), deployment)
