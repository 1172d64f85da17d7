"""The student's own stream, made as the runtime makes it, and made again a block at a time with gradients.

A rollout goes through `DiT.step` with the runtime's caches: one ring a denoising step (timestep forcing), no clean pass (history
corrupt), the first clean latent as the new sink from the fifth block on, the reference rolling ahead. All blocks leave at one step
s of the sampler, from which x0 is foretold; with s the last it is the runtime's stream to the bit. `replay` then runs block after
block, the last first, once more through step s with gradients: what it attends to are the detached keys and values that the block
found when it was made, so that memory holds one block's graph. Slots that later blocks overwrote are put back on the way.

    rollout = Rollout(dit, plan, scene, course); x0 = rollout.run()
    for b in reversed(range(course.blocks)): (rollout.replay(b) * gradient[:, frames of b]).sum().backward()
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from everface.models.live_avatar.conditions import Noise
from everface.model.kv_cache import KVCache
from everface.kernels.fused.flow_step import flow_step
from everface.model.dit import BlockPosition, DiT, StepMod
from everface.model.layers import KV, AudioKV, TextKV
from everface.model.rope import SINK_TIME
from everface.model.schedule import Schedule, sigmas, sink_distance
from everface.train.plans import Stage2

VIDEO_FRAMES, PAST = 4, 5  # of sound: a latent frame, and those before a block


@dataclass(frozen=True)
class Scene:
    """One stream: who speaks, what is heard, the seed of its noise and of the reference's distances. F latent frames in all."""

    reference_16_1hw: torch.Tensor
    motion_16Thw: torch.Tensor
    text_LC: torch.Tensor
    features_LCT: torch.Tensor  # 5 past video frames, then 4 a latent frame
    seed: int
    truth_16Fhw: torch.Tensor | None = None  # for rollouts that start from it


@dataclass(frozen=True)
class Course:
    """What all rollouts of an iteration share, so that sharded ranks go in step."""

    first_block: int  # where in its stream a rollout begins, with empty rings
    blocks: int
    exit_step: int
    start_step: int = 0  # above 0: from the truth, noised to this step's level


def schedule_of(plan: Stage2) -> Schedule:
    return Schedule.from_sigmas(sigmas(plan.steps, plan.shift))


class Rollout:
    """One scene through the student. `dtype` is that of the caches and of the latents: the weights' own."""

    def __init__(self, dit: DiT, plan: Stage2, scene: Scene, course: Course, dtype: torch.dtype = torch.float32) -> None:
        self.dit, self.plan, self.scene, self.course, self.dtype = dit, plan, scene, course, dtype
        self.schedule, self.n = schedule_of(plan), dit.cfg.block_frames
        c, _, h, w = scene.reference_16_1hw.shape
        self.device, self.grid = scene.reference_16_1hw.device, dit.grid(scene.reference_16_1hw)
        self.noise = Noise(scene.seed, (c, h, w), self.n, dit.cfg.window_blocks, plan.noise_correlation)
        self.rope = dit.rope(self.grid)
        steps = range(course.start_step, course.exit_step + 1)
        rings = {s: self._ring(h, w) for s in (steps if plan.history == "own" else [-1])}
        self.rings = {s: rings.get(s, rings.get(-1)) for s in steps}
        self.sinks: list[KV] = []  # the first, then the refreshed one
        self.sink_of: list[int] = []  # by block
        self.entered: list[torch.Tensor] = []  # x as it came to the exit step, by block
        self.overwritten: list[KV | None] = []  # what the block's slot held before, by block
        self.x0_16Fhw = torch.empty(0)

    @torch.no_grad()
    def run(self) -> torch.Tensor:
        """x0 of the whole scene [16, F, h, w]."""
        dit, plan, course, scene = self.dit, self.plan, self.course, self.scene
        text_kv = dit.text_kv(dit.embed_text(scene.text_LC))
        reading = dit.stream_text_kv(text_kv)
        self._prime(scene.reference_16_1hw, text_kv)
        levels, times = self.schedule.sigmas, self.schedule.timesteps
        mods = {s: dit.modulations(dit.time(times[s])) for s in self.rings}
        done: list[torch.Tensor] = []
        for b in range(course.blocks):
            index = course.first_block + b
            if plan.refresh and course.first_block == 0 and index == dit.cfg.window_blocks:
                self._prime(done[0][:, :1], text_kv)
            self.sink_of.append(len(self.sinks) - 1)
            heard = self._hear(b)
            x = self._start(b, index)
            self.overwritten.append(self._slot(b))  # before any step, as steps may share a ring
            for s in self.rings:
                if s == course.exit_step:
                    self.entered.append(x)
                following = 0.0 if s == course.exit_step else levels[s + 1]
                x = dit.step(x, levels[s], following, mods[s], reading, heard, self._cache(s), self.rope, self.place(b, s))
            if plan.history != "own":
                self._keep_history(b, x, reading, heard)
            done.append(x)
        self.x0_16Fhw = torch.cat(done, dim=1)
        self.rings = {course.exit_step: self.rings[course.exit_step]}  # all that a replay asks for
        return self.x0_16Fhw

    def replay(self, b: int) -> torch.Tensor:
        """x0 of block b once more, with a graph. Blocks must be asked for from the last to the first: the rings are wound back."""
        dit, s = self.dit, self.course.exit_step
        if b + 1 != len(self.overwritten):
            raise ValueError(f"block {b} asked for, where {len(self.overwritten) - 1} comes next: replay goes from the last to the first")
        cache = self._cache(s, self.sink_of[b])
        text_kv = dit.text_kv(dit.embed_text(self.scene.text_LC))
        mod, heard, levels = dit.modulations(dit.time(self.schedule.timesteps[s])), self._hear(b), (self.schedule.sigmas[s], 0.0)
        read = Replayed(cache.k_LNHd, cache.v_LNHd, cache.sink_k_LCHd)
        x = dit.step(self.entered[b], *levels, mod, dit.stream_text_kv(text_kv), heard, read, self.rope, self.place(b, s))
        before, slot = self.overwritten.pop(), self._slots(b)
        if before is not None:
            cache.k_LNHd[:, slot].copy_(before[0])
            cache.v_LNHd[:, slot].copy_(before[1])
        return x

    def place(self, b: int, step: int) -> BlockPosition:
        """Where block b stands for a step."""
        index = self.course.first_block + b
        place = self.dit.block_position(self.grid, index, sink_distance(self.scene.seed, index, step), run=b)
        return place if self.plan.rolling else place._replace(sink=SINK_TIME)

    def _start(self, b: int, index: int) -> torch.Tensor:
        noise = self.noise(index).to(self.device, self.dtype)
        if not self.course.start_step:
            return noise
        assert self.scene.truth_16Fhw is not None
        truth, sigma = self.scene.truth_16Fhw[:, self.n * b : self.n * (b + 1)], self.schedule.sigmas[self.course.start_step]
        return ((1 - sigma) * truth + sigma * noise).to(self.dtype)

    def _hear(self, b: int) -> list[AudioKV]:
        first, length = VIDEO_FRAMES * self.n * b, VIDEO_FRAMES * self.n
        features = self.scene.features_LCT[..., first : first + PAST + length]
        local, heard = self.dit.casual_audio_encoder.encode_block(features[..., PAST:], features[..., :PAST])
        return self.dit.audio_kv(local, heard)

    def _prime(self, reference_16_1hw: torch.Tensor, text_kv: list[KV]) -> None:
        sink_k, sink_v = self.dit.prefill_sink(reference_16_1hw, self.scene.motion_16Thw.to(self.dtype), text_kv)
        self.sinks.append((sink_k.to(self.dtype), sink_v.to(self.dtype)))

    def _ring(self, h: int, w: int) -> KVCache:
        return self.dit.new_cache(h, w, self.dtype, self.device)

    def _cache(self, step: int, sink: int = -1) -> KVCache:
        """The step's, with the sink that stands now or one from before."""
        cache = self.rings[step]
        assert cache is not None
        cache.sink_k_LCHd, sink_v_LCHd = self.sinks[sink]  # keys are read only, so the rings share them
        cache.sink_v_LCHd.copy_(sink_v_LCHd)
        return cache

    def _slots(self, b: int) -> slice:
        start = self.dit.block_position(self.grid, b, 0).start
        return slice(start, start + self.n * self.grid[0] * self.grid[1])

    def _slot(self, b: int) -> KV | None:
        """A copy, on the host, of what block b will overwrite in the ring of the exit step; None while nothing is there."""
        if b < self.dit.cfg.window_blocks:
            return None
        cache, slot = self._cache(self.course.exit_step), self._slots(b)
        return cache.k_LNHd[:, slot].to("cpu", copy=True), cache.v_LNHd[:, slot].to("cpu", copy=True)

    def _keep_history(self, b: int, x0: torch.Tensor, reading: list[TextKV], heard: list[AudioKV]) -> None:
        """Ablation: the block's slot of the one ring from a pass of its own, clean or at a fixed level, as other methods have it."""
        dit, sigma = self.dit, self.plan.past_sigma
        g = torch.Generator().manual_seed(self.scene.seed + 1_000_003 * (self.course.first_block + b))
        x = flow_step(x0, torch.randn(x0.shape, generator=g).to(x0) - x0, 0.0, sigma)
        mod: StepMod = dit.modulations(dit.time(1000 * sigma))
        step = self.course.exit_step
        dit.tokens(x, mod, reading, heard, self._cache(step), self.rope, self.place(b, step))


class Replayed(KVCache):
    """A cache to read under gradients: a block is written into a copy of each layer, so that one layer's graph does not hang on another's
    write, and slots stay as they were found."""

    def layer(self, index: int) -> KV:
        return self.k_LNHd[index].clone(), self.v_LNHd[index].clone()
