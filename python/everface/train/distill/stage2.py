"""`everface train stage2`: the student learns on its own rollouts, against a frozen teacher and a fake score that is trained beside it.

    everface train stage2 RUN --clips DIR --student DIT --teacher DIT
    torchrun --nproc-per-node 8 -m everface train stage2 RUN ... --config wan-s2v-14b --device cuda
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from everface.core.config import DiTConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.networks.transformer.dit import DiT
from everface.train.data.clips import STILL_LATENTS, Clips, split_clips
from everface.train.data.familiarity import leave_familiarity
from everface.train.distill.activations import checkpointed
from everface.train.distill.dmd import dmd_gradient, draw_level, fake_loss, score_noise
from everface.train.distill.lora import add_adapters, without_adapters
from everface.train.distill.plans import Stage2Plan
from everface.train.distill.reward import Reward
from everface.train.distill.rollout import Rollout
from everface.train.distill.scenes import draw_course, draw_scene, window_of
from everface.train.engine.checkpoint import TrainedModel
from everface.train.engine.ema import Ema
from everface.train.engine.loop import accumulate_gradients, apply_gradients, train
from everface.train.engine.optimizer import Optimizer
from everface.train.engine.plan import learning_rate_factor
from everface.train.engine.precision import autocast
from everface.train.engine.ranks import Ranks, process_group
from everface.train.engine.run_log import RunLog
from everface.train.engine.sharding import shard_model
from everface.train.pretrain.dit_files import new_dit, write_dit
from everface.train.pretrain.flow_matching import latent_weight
from everface.train.pretrain.plans import TINY_DIT
from everface.train.pretrain.teacher import velocity
from everface.train.pretrain.window_model import WindowModel
from everface.train.pretrain.windows import TrainingWindow

BETAS = (0.0, 0.99)  # of Adam: no momentum, as both sides of the game move
Sample = tuple[TrainingWindow, torch.Tensor, random.Random]
"""(its scene as the scores see it, x0 [16, F, h, w], what draws its further noise)."""


def train_stage2(
    run_dir: Path, clips_dir: Path, student: Path, teacher: Path, plan: Stage2Plan, config: DiTConfig = TINY_DIT, device: str = "cpu"
) -> Path:
    """Train and return the path of the averaged weights: run_dir/dit.safetensors, or with plan.lora_rank run_dir/lora.safetensors.

    Resumes where run_dir holds a checkpoint. With plan.iterations a run is repeatable to the bit on one CPU thread.
    """
    clips, _ = split_clips(clips_dir, plan.held_out)
    if plan.blocks * config.block_frames > clips.latents_N16Thw.shape[2] - STILL_LATENTS:
        raise BadInput(f"rollouts of {plan.blocks} blocks are longer than the clips of {clips_dir}: set fewer blocks")
    if plan.reward and plan.region is not None:
        raise BadInput("the reward looks for the mouth in a whole image: set reward=0 where the model makes a region only")
    with process_group(device) as ranks:
        distiller = Distiller(new_dit(config, 0, student), new_dit(config, 0, teacher), clips, plan, ranks)
        return distiller.run(run_dir)


class Distiller:
    """Student, fake score and teacher on one rank, and one iteration of all three."""

    def __init__(self, student: DiT, teacher: DiT, clips: Clips, plan: Stage2Plan, ranks: Ranks) -> None:
        self.plan, self.ranks, self.cfg = plan, ranks, student.cfg
        self.clips, self.references_NChw = clips.within(plan.region, self.cfg.patch_size[1]), clips.latents_N16Thw[:, :, 0].clone()  # the rest may go
        self.sharded = plan.sharded(ranks.world)
        if plan.lora_rank:  # one set of frozen weights serves fake and real score
            add_adapters(student, plan.lora_rank, plan.lora_alpha, plan.seed)
            fake = add_adapters(teacher, plan.lora_rank, plan.lora_alpha, plan.seed + 1)
        else:
            fake = DiT(self.cfg)
            fake.load_state_dict(teacher.state_dict())
            teacher.requires_grad_(False)
        for dit in (student, fake) if plan.lora_rank else (student, fake, teacher):
            dit.to(ranks.device)
            if self.sharded:
                shard_model(dit, ranks, plan.shard_group)
        self.student, self.fake = student, WindowModel(fake, True, plan.checkpoint_activations)
        self.real = self.fake if plan.lora_rank else WindowModel(teacher, True)
        self.ema = Ema(student, plan.ema, trained=bool(plan.lora_rank))
        self.models = {
            "student.": TrainedModel(student, Optimizer(student, betas=BETAS, muon=plan.muon), self.ema),
            "fake.": TrainedModel(fake, Optimizer(fake, betas=BETAS, muon=plan.muon)),
        }
        self.weight = latent_weight(clips.latents_N16Thw, plan, self.cfg.patch_size[1]).to(ranks.device)
        self.reward = Reward(clips, plan.reward_motion) if plan.reward else None
        self.dtype = torch.bfloat16 if self.sharded and ranks.device != "cpu" else torch.float32

    def run(self, run_dir: Path) -> Path:
        plan = self.plan

        def update(step: int, done: float, run_log: RunLog) -> None:
            run_log.add(**self.iterate(step, done))

        log.info("stage 2: %d clips, %d steps, rollouts of %d blocks", len(self.clips), plan.steps, plan.blocks)
        progress = train(run_dir, plan, self.models, update, self.ranks)
        name = "lora.safetensors" if plan.lora_rank else "dit.safetensors"
        if self.ranks.rank == 0:
            leave_familiarity(run_dir, self.references_NChw)
        return write_dit(run_dir, self.student, self.ema, plan, progress, self.ranks, name)

    def iterate(self, i: int, done: float) -> dict[str, float]:
        """A batch of rollouts; every `ratio`-th updates the student, and each one the fake score. Returns figures for the log."""
        plan, ranks = self.plan, self.ranks
        course, factor = draw_course(plan, i), learning_rate_factor(done, i, plan)
        update_student = (i + 1) % plan.ratio == 0
        scale = ranks.loss_factor(self.sharded) / plan.micro_batches
        for model in self.models.values():
            model.optimizer.zero_grad()
        samples: list[Sample] = []
        size = mean_reward = 0.0
        for micro in ranks.share(plan.micro_batches):
            number = i * plan.micro_batches + micro
            rng = random.Random(plan.seed * 86_028_121 + number)
            scene = draw_scene(self.clips, plan, course, self.cfg.block_frames, self.cfg.text_dim, number, ranks.device)
            rollout = Rollout(self.student, plan, scene, course, self.dtype)
            x0 = rollout.run().float()
            window = window_of(scene, course, x0, self.cfg.block_frames)
            if update_student:
                gradient = self.gradient(x0, window, rng)
                size += gradient.square().mean().item() / plan.micro_batches
                reward = self.reward(x0, scene.features_LCT) if self.reward else 0.0
                mean_reward += reward / plan.micro_batches
                self.backward(rollout, gradient * (scale * math.exp(plan.reward * reward) / gradient.numel()))
            samples.append((window, x0, rng))
        report: dict[str, float] = {}
        if update_student:
            report["norm"] = apply_gradients(self.models["student."], plan.lr * factor, ranks)
            report["dmd"], report["reward"] = ranks.sum(size, mean_reward)
        return report | {"fake": self.update_fake(samples, plan.fake_lr * factor)}

    def gradient(self, x0_16Fhw: torch.Tensor, window: TrainingWindow, rng: random.Random) -> torch.Tensor:
        """dmd_gradient of one clip, weighted towards mouth and eyes, [16, F, h, w]."""
        plan, x0 = self.plan, x0_16Fhw[None]
        level = torch.tensor([draw_level(plan, rng)], device=x0.device)

        def real(x: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
            with without_adapters(self.real.dit) if plan.lora_rank else nullcontext():
                return velocity(self.real, x, window, sigma_B, plan.guidance)

        def fake(x: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
            return velocity(self.fake, x, window, sigma_B)

        with autocast(self.ranks.device):
            return self.weight * dmd_gradient(x0, real, fake, level, score_noise(x0, plan, rng))[0]

    def backward(self, rollout: Rollout, gradient_16Fhw: torch.Tensor) -> None:
        """Propagate the clip's gradient into the student, one block at a time, the last first."""
        n = self.cfg.block_frames
        with checkpointed(self.student) if self.plan.checkpoint_activations else nullcontext():
            for b in reversed(range(rollout.course.blocks)):
                (rollout.replay(b).float() * gradient_16Fhw[:, n * b : n * (b + 1)]).sum().backward()

    def update_fake(self, samples: list[Sample], lr: float) -> float:
        """One update of the fake score on these samples; returns its loss."""
        model = self.models["fake."]

        def losses() -> Iterator[torch.Tensor]:
            for window, x0, rng in samples:
                sigma = draw_level(self.plan, rng)
                with autocast(self.ranks.device):
                    loss = fake_loss(self.fake, x0[None], window, sigma, score_noise(x0[None], self.plan, rng))
                yield loss

        total = accumulate_gradients(model, losses(), self.plan.micro_batches, self.ranks, self.sharded)
        apply_gradients(model, lr, self.ranks)
        return self.ranks.sum(total)[0]
