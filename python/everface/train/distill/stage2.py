"""The stage-2 run: the student learns on its own rollouts, against a frozen teacher and a fake score trained beside it.

    everface train stage2 RUN --clips DIR --student DIT --teacher DIT
    torchrun --nproc-per-node 8 -m everface train stage2 RUN ... --config wan-s2v-14b --device cuda
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from everface.core.config import DiTConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.model.dit import DiT
from everface.train.data.clips import Clips
from everface.train.distill.dmd import dmd_gradient, draw_course, draw_level, draw_scene, fake_loss, score_noise, window_of
from everface.train.distill.lora import adapt, without_adapters
from everface.train.distill.reward import Reward
from everface.train.distill.rollout import Rollout
from everface.train.engine.optimizer import Ema, Optimiser, Part, autocast, read_state
from everface.train.engine.ranks import Ranks, clip_gradients, ranks
from everface.train.engine.run_log import Journal
from everface.train.pretrain.flow_matching import (
    JOURNAL_EVERY,
    Clock,
    check_muon,
    finish,
    learning_rate,
    new_dit,
    split_clips,
    state_file,
    write_progress,
)
from everface.train.pretrain.plans import TINY, Stage2
from everface.train.pretrain.teacher import velocity
from everface.train.pretrain.windows import Window, WindowModel, region_weight


def train_stage2(
    run_dir: Path, clips_dir: Path, student: Path, teacher: Path, plan: Stage2, config: DiTConfig = TINY, device: str = "cpu"
) -> Path:
    """Train and return the path of the averaged weights: `run_dir/dit.safetensors`, or with plan.rank the LoRA `run_dir/lora.safetensors`.

    Resumes from run_dir when it holds a checkpoint. With plan.iterations a run is repeatable to the bit on one CPU thread.
    """
    clips, _ = split_clips(clips_dir, plan.held_out)
    if plan.blocks * config.block_frames > clips.latents_N16Thw.shape[2] - 2:
        raise BadInput(f"rollouts of {plan.blocks} blocks are longer than the clips of {clips_dir}: set fewer")
    with ranks(device) as among:
        distiller = Distiller(new_dit(config, 0, student), new_dit(config, 0, teacher), clips, plan, among)
        return distiller.run(run_dir)


class Distiller:
    """Student, fake and teacher on one rank, and an iteration of all three."""

    def __init__(self, student: DiT, teacher: DiT, clips: Clips, plan: Stage2, among: Ranks) -> None:
        self.plan, self.clips, self.among, self.cfg = plan, clips, among, student.cfg
        self.sharded = plan.shard and among.world > 1
        fake = teacher
        if plan.rank:  # one base serves the fake and the real score
            student, fake = adapt(student, plan.rank, plan.alpha, plan.seed), adapt(teacher, plan.rank, plan.alpha, plan.seed + 1)
        else:
            fake = DiT(self.cfg)
            fake.load_state_dict(teacher.state_dict())
            teacher.requires_grad_(False)
        models = (student, fake) if plan.rank else (student, fake, teacher)
        for dit in models:
            dit.to(among.device)
            if self.sharded:
                among.shard(dit, plan.shard_over)
        self.student, self.fake = student, WindowModel(fake, full=True, again=plan.checkpoint)
        self.real = self.fake if plan.rank else WindowModel(teacher, full=True)
        muon = check_muon(plan, self.sharded)
        self.parts = {
            "student.": Part(student, Optimiser(student, betas=(0.0, 0.99), muon=muon), Ema(student, plan.ema, trained=bool(plan.rank))),
            "fake.": Part(fake, Optimiser(fake, betas=(0.0, 0.99), muon=muon)),
        }
        h, w = clips.latents_N16Thw.shape[-2:]
        self.weight = region_weight(h, w, plan.mouth, plan.eyes).to(among.device)
        self.reward = Reward(clips, plan.reward_motion) if plan.reward else None
        self.dtype = torch.bfloat16 if self.sharded and among.device != "cpu" else torch.float32
        self.updates = 0

    def run(self, run_dir: Path) -> Path:
        run_dir.mkdir(parents=True, exist_ok=True)
        plan, state = self.plan, state_file(run_dir, self.among)
        progress = read_state(state, self.parts)
        clock = Clock(plan, progress, self.among)
        log.info("stage 2: %d clips, %d steps, rollouts of %d blocks", len(self.clips), plan.steps, plan.blocks)
        with Journal(run_dir, self.among.rank) as journal:
            while (done := clock.done()) < 1:
                journal.add(**self.iterate(progress.step, done))
                clock.tick()
                if progress.step % JOURNAL_EVERY == 0:
                    journal.write({"step": progress.step, "seconds": round(progress.seconds)})
                if clock.save_due():
                    write_progress(state, run_dir, self.parts, progress, self.among)
            journal.end({"step": progress.step, "seconds": round(progress.seconds)})
        write_progress(state, run_dir, self.parts, progress, self.among)
        ema = self.parts["student."].ema
        assert ema is not None
        name = "lora.safetensors" if plan.rank else "dit.safetensors"
        return finish(run_dir, self.student, ema, asdict(plan) | {"steps_done": progress.step}, self.among, name)

    def iterate(self, i: int, done: float) -> dict[str, float]:
        """One rollout a member of the batch; every `ratio`-th time the student learns from it, and every time the fake."""
        plan, among = self.plan, self.among
        course, factor = draw_course(plan, i), learning_rate(done, i, plan)
        teach = (i + 1) % plan.ratio == 0
        scale = among.factor(self.sharded) / plan.micros
        for part in self.parts.values():
            part.optimiser.zero_grad()
        samples: list[tuple[Window, torch.Tensor, random.Random]] = []
        size = liking = 0.0
        for micro in among.share(plan.micros):
            number = i * plan.micros + micro
            rng = random.Random(plan.seed * 86_028_121 + number)
            scene = draw_scene(self.clips, plan, course, self.cfg.block_frames, self.cfg.text_dim, number, among.device)
            rollout = Rollout(self.student, plan, scene, course, self.dtype)
            x0 = rollout.run().float()
            window = window_of(scene, course, x0, self.cfg.block_frames)
            if teach:
                gradient = self.gradient(x0, window, rng)
                size += gradient.square().mean().item() / plan.micros
                reward = self.reward(x0, scene.features_LCT) if self.reward else 0.0
                liking += reward / plan.micros
                gradient = gradient * (scale * math.exp(plan.reward * reward) / gradient.numel())
                self.descend(rollout, gradient)
            samples.append((window, x0, rng))
        report: dict[str, float] = {}
        if teach:
            student, optimiser, ema = self.parts["student."]
            among.reduce(student)
            report["norm"] = clip_gradients(student, 1.0)
            optimiser.step(plan.lr * factor)
            assert ema is not None
            ema.update(student)
            report["dmd"], report["reward"] = among.total(size, liking)
        return report | {"fake": self.teach_fake(samples, scale, plan.fake_lr * factor)}

    def gradient(self, x0_16Fhw: torch.Tensor, window: Window, rng: random.Random) -> torch.Tensor:
        """dmd_gradient of one clip, weighted towards mouth and eyes, [16, F, h, w]."""
        plan, x0 = self.plan, x0_16Fhw[None]
        level = torch.tensor([draw_level(plan, rng)], device=x0.device)

        def real(x: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
            with without_adapters(self.real.dit) if plan.rank else nullcontext():
                return velocity(self.real, x, window, sigma_B, plan.guidance)

        def fake(x: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
            return velocity(self.fake, x, window, sigma_B)

        with autocast(self.among.device.partition(":")[0]):
            return self.weight * dmd_gradient(x0, real, fake, level, score_noise(x0, plan, rng))[0]

    def descend(self, rollout: Rollout, gradient_16Fhw: torch.Tensor) -> None:
        """The clip's gradient, carried into the student one block at a time, the last first."""
        n = self.cfg.block_frames
        with checkpointed(self.student) if self.plan.checkpoint else nullcontext():
            for b in reversed(range(rollout.course.blocks)):
                (rollout.replay(b).float() * gradient_16Fhw[:, n * b : n * (b + 1)]).sum().backward()

    def teach_fake(self, samples: list[tuple[Window, torch.Tensor, random.Random]], scale: float, lr: float) -> float:
        fake, optimiser, _ = self.parts["fake."]
        optimiser.zero_grad()
        total = 0.0
        for window, x0, rng in samples:
            sigma = draw_level(self.plan, rng)
            with autocast(self.among.device.partition(":")[0]):
                loss = fake_loss(self.fake, x0[None], window, sigma, score_noise(x0[None], self.plan, rng))
            (loss * scale).backward()
            total += loss.item() / self.plan.micros
        self.among.reduce(fake)
        clip_gradients(fake, 1.0)
        optimiser.step(lr)
        return self.among.total(total)[0]


@contextmanager
def checkpointed(dit: DiT) -> Iterator[None]:
    """The streaming blocks forget their activations and make them again on the way back. A block's write into its copied ring is made
    again too, with the same numbers."""
    blocks = dit._blocks()
    held = [vars(block).get("stream") for block in blocks]  # FSDP2 has put one there
    for block in blocks:
        object.__setattr__(block, "stream", lambda *given, stream=block.stream: checkpoint(stream, *given, use_reentrant=False))
    try:
        yield
    finally:
        for block, stream in zip(blocks, held, strict=True):
            if stream is None:
                object.__delattr__(block, "stream")
            else:
                object.__setattr__(block, "stream", stream)
