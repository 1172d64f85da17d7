"""The student's own stream, made as the runtime makes it, and replayed block by block with gradients.

A rollout runs `DiT.step` with the runtime's caches: one ring per denoising step (timestep forcing), no clean pass (history corrupt), the
first clean latent as the new sink from the fifth block on, the reference ahead of the block (rolling RoPE). All blocks stop at one step
of the sampler, the exit step, from which x0 is predicted; with the last step for exit it is the runtime's stream to the bit.

`replay` then runs one block after another, the last first, once more through the exit step with gradients. They attend to detached keys and
values as the block found them, so that memory holds the graph of one block only. Slots that later blocks overwrote are restored on the way.

    rollout = Rollout(dit, plan, scene, course); x0 = rollout.run()
    for b in reversed(range(course.blocks)): (rollout.replay(b) * gradient[:, frames of b]).sum().backward()
"""

from __future__ import annotations

import torch

from everface.core.config import LATENT_FRAMES
from everface.kernels.fused.flow_step import flow_step
from everface.models.live_avatar.conditions import Noise
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.motion import split_pose
from everface.networks.transformer.dit import BlockPosition, DiT, StepMod
from everface.networks.transformer.kv_cache import KVCache
from everface.networks.transformer.layers import KV, AudioKV, TextKV
from everface.networks.transformer.rope import SINK_TIME
from everface.networks.transformer.schedule import sink_distance
from everface.train.distill.plans import Stage2Plan
from everface.train.distill.scenes import Course, Scene, sampler_schedule


class Rollout:
    """One scene through the student. `dtype` is that of the caches and latents, which must be that of the weights."""

    def __init__(self, dit: DiT, plan: Stage2Plan, scene: Scene, course: Course, dtype: torch.dtype = torch.float32) -> None:
        self.dit, self.plan, self.scene, self.course, self.dtype = dit, plan, scene, course, dtype
        self.schedule, self.n = sampler_schedule(plan), dit.cfg.block_frames
        c, _, h, w = scene.reference_16_1hw.shape
        self.device, self.grid = scene.reference_16_1hw.device, dit.grid(scene.reference_16_1hw)
        self.noise = Noise(scene.seed, (c, h, w), self.n, dit.cfg.window_blocks, plan.noise_correlation)
        self.rope = dit.rope(self.grid)
        steps = range(course.start_step, course.exit_step + 1)
        rings = {s: dit.new_cache(h, w, dtype, self.device) for s in (steps if plan.history == "own" else [-1])}
        self.rings = {s: rings.get(s, rings.get(-1)) for s in steps}
        self.sinks: list[KV] = []  # the first, then the refreshed one
        self.sink_of: list[int] = []  # by block
        self.entered: list[torch.Tensor] = []  # x at the entry of the exit step, by block
        self.overwritten: list[KV | None] = []  # content of the block's slot before the block, by block
        self.x0_16Fhw = torch.empty(0)

    @torch.no_grad()
    def run(self) -> torch.Tensor:
        """x0 of the whole scene [16, F, h, w]."""
        dit, plan, course, scene = self.dit, self.plan, self.course, self.scene
        text_kv = dit.text_kv(dit.embed_text(scene.text_LC))
        text = dit.stream_text_kv(text_kv)
        self._prime(scene.reference_16_1hw, text_kv)
        levels, times = self.schedule.sigmas, self.schedule.timesteps
        mods = {s: dit.modulations(dit.time(times[s])) for s in self.rings}
        done: list[torch.Tensor] = []
        for b in range(course.blocks):
            index = course.first_block + b
            if plan.refresh and course.first_block == 0 and index == dit.cfg.window_blocks:
                self._prime(done[0][:, :1], text_kv)
            self.sink_of.append(len(self.sinks) - 1)
            audio = self._audio(b)
            x = self._start(b, index)
            self.overwritten.append(self._copy_slot(b))  # before any step, as steps may share a ring
            for s in self.rings:
                if s == course.exit_step:
                    self.entered.append(x)
                following = 0.0 if s == course.exit_step else levels[s + 1]
                x = dit.step(x, levels[s], following, mods[s], text, audio, self._cache(s), self.rope, self.position(b, s), self._pose(b))
            if plan.history != "own":
                self._keep_history(b, x, text, audio)
            done.append(x)
        self.x0_16Fhw = torch.cat(done, dim=1)
        self.rings = {course.exit_step: self.rings[course.exit_step]}  # replay needs no other
        return self.x0_16Fhw

    def replay(self, b: int) -> torch.Tensor:
        """x0 of block b once more, with a graph. Blocks must be replayed from the last to the first, because the rings are rewound."""
        dit, s = self.dit, self.course.exit_step
        if b + 1 != len(self.overwritten):
            raise ValueError(f"block {b} was asked for, but {len(self.overwritten) - 1} is next: replay goes from the last to the first")
        cache = self._cache(s, self.sink_of[b])
        text_kv = dit.text_kv(dit.embed_text(self.scene.text_LC))
        mod, audio, levels = dit.modulations(dit.time(self.schedule.timesteps[s])), self._audio(b), (self.schedule.sigmas[s], 0.0)
        copied = CopyOnWriteCache(cache.k_LNHd, cache.v_LNHd, cache.sink_k_LCHd)
        x = dit.step(self.entered[b], *levels, mod, dit.stream_text_kv(text_kv), audio, copied, self.rope, self.position(b, s), self._pose(b))
        before, slot = self.overwritten.pop(), self._slot(b)
        if before is not None:
            cache.k_LNHd[:, slot].copy_(before[0])
            cache.v_LNHd[:, slot].copy_(before[1])
        return x

    def position(self, b: int, step: int) -> BlockPosition:
        """Position of block b in a step."""
        index = self.course.first_block + b
        position = self.dit.block_position(self.grid, index, sink_distance(self.scene.seed, index, step), run=b)
        return position if self.plan.rolling else position._replace(sink=SINK_TIME)

    def _start(self, b: int, index: int) -> torch.Tensor:
        noise = self.noise(index).to(self.device, self.dtype)
        if not self.course.start_step:
            return noise
        assert self.scene.truth_16Fhw is not None
        truth, sigma = self.scene.truth_16Fhw[:, self.n * b : self.n * (b + 1)], self.schedule.sigmas[self.course.start_step]
        return ((1 - sigma) * truth + sigma * noise).to(self.dtype)

    def _features(self, b: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Audio features of block b, with the frames before it, and its pose, if the clips have one."""
        length = LATENT_FRAMES * self.n
        features, pose = split_pose(self.scene.features_LCT[None, ..., length * b : length * (b + 1) + PAST_FRAMES], self.dit.cfg.audio_dim)
        return features[0], None if pose is None else pose[0]

    def _pose(self, b: int) -> torch.Tensor | None:
        return self._features(b)[1]

    def _audio(self, b: int) -> list[AudioKV]:
        features, _ = self._features(b)
        local, glob = self.dit.casual_audio_encoder.encode_block(features[..., PAST_FRAMES:], features[..., :PAST_FRAMES])
        return self.dit.audio_kv(local, glob)

    def _prime(self, reference_16_1hw: torch.Tensor, text_kv: list[KV]) -> None:
        sink_k, sink_v = self.dit.prefill_sink(reference_16_1hw, self.scene.motion_16Thw.to(self.dtype), text_kv)
        self.sinks.append((sink_k.to(self.dtype), sink_v.to(self.dtype)))

    def _cache(self, step: int, sink: int = -1) -> KVCache:
        """The step's cache, with the present sink or an earlier one."""
        cache = self.rings[step]
        assert cache is not None
        cache.sink_k_LCHd, sink_v_LCHd = self.sinks[sink]  # keys are only read, so the rings share them
        cache.sink_v_LCHd.copy_(sink_v_LCHd)
        return cache

    def _slot(self, b: int) -> slice:
        """The tokens of block b in a ring."""
        start = self.dit.block_position(self.grid, b, 0).start
        return slice(start, start + self.n * self.grid[0] * self.grid[1])

    def _copy_slot(self, b: int) -> KV | None:
        """A copy in host memory of what block b will overwrite in the ring of the exit step; None while the slot is empty."""
        if b < self.dit.cfg.window_blocks:
            return None
        cache, slot = self._cache(self.course.exit_step), self._slot(b)
        return cache.k_LNHd[:, slot].to("cpu", copy=True), cache.v_LNHd[:, slot].to("cpu", copy=True)

    def _keep_history(self, b: int, x0: torch.Tensor, text: list[TextKV], audio: list[AudioKV]) -> None:
        """Ablation: fill the block's slot of the shared ring by another pass, clean or at a fixed level, as other methods do."""
        dit, sigma = self.dit, self.plan.past_sigma
        g = torch.Generator().manual_seed(self.scene.seed + 1_000_003 * (self.course.first_block + b))
        x = flow_step(x0, torch.randn(x0.shape, generator=g).to(x0) - x0, 0.0, sigma)
        mod: StepMod = dit.modulations(dit.time(1000 * sigma))
        step = self.course.exit_step
        dit.tokens(x, mod, text, audio, self._cache(step), self.rope, self.position(b, step), self._pose(b))


class CopyOnWriteCache(KVCache):
    """A cache for use under gradients: a block is written into a copy of each layer, so that the graph of one layer does not depend on
    another's write, and the slots keep their content."""

    def layer(self, index: int) -> KV:
        return self.k_LNHd[index].clone(), self.v_LNHd[index].clone()
