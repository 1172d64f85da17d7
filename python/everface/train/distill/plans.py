"""The plan of stage 2, and the plan of a whole model: sizes and all phases, with changes from the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from everface.core.config import ModelConfig
from everface.core.errors import BadInput
from everface.train.engine.plan import with_settings
from everface.train.pretrain.plans import Stage1Plan, StreamingPlan, TeacherPlan, TransformerPlan


@dataclass(frozen=True)
class Stage2Plan(TransformerPlan, StreamingPlan):
    """One iteration is a batch of rollouts and an update of the fake score; every `ratio`-th also updates the student."""

    minutes: float = 60.0
    lr: float = 1e-4  # of the student
    fake_lr: float = 3e-4
    warmup_steps: int = 10
    decay_from: float = 0.7
    ema: float = 0.95
    micro_batches: int = 2
    muon: bool = False
    ratio: int = 5
    blocks: int = 5  # of a rollout
    shift: float = 3.0
    guidance: float = 1.0  # classifier-free guidance of the real score; 1: none
    min_sigma: float = 0.02  # noise levels at which the scores are compared
    max_sigma: float = 0.98
    start_share: float = 0.5  # of the rollouts begin with the stream, the others anywhere up to `max_block`
    max_block: int = 100_000
    lora_rank: int = 0  # 0: all weights are trained
    lora_alpha: float = 64.0
    # Against loss of motion (DynaForcing); 0 switches each off.
    truth_start: float = 0.3  # share of the rollouts that start from noised truth (scenes.draw_course)
    reward: float = 0.1  # gradients are weighted by exp(reward * R) (reward.Reward)
    reward_motion: float = 0.5  # weight of motion in R, where lips have 1
    perturb_reference: float = 0.3  # share of the references that are other noised latents of the same character (scenes.draw_scene)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio < 1 or self.blocks < 1:
            raise BadInput(f"ratio {self.ratio}, blocks {self.blocks}: take at least 1")


@dataclass(frozen=True)
class ModelPlan:
    """One model and its three phases."""

    model: ModelConfig
    latent: tuple[int, int]  # rows and columns of a latent frame
    teacher: TeacherPlan
    stage1: Stage1Plan
    stage2: Stage2Plan


def change_plan(plan: ModelPlan, phase: str, given: dict[str, Any], settings: list[str]) -> ModelPlan:
    """The plan with fields of one phase replaced: by name, and by `field=value` (engine.plan.with_settings). `block_frames` is the
    model's."""
    rest = []
    for setting in settings:
        name, _, text = setting.partition("=")
        if name == "block_frames" and text.isdecimal() and int(text) > 0:
            plan = replace(plan, model=replace(plan.model, dit=replace(plan.model.dit, block_frames=int(text))))
        else:
            rest.append(setting)
    held = replace(getattr(plan, phase), **given)
    return replace(plan, **{phase: with_settings(held, phase, rest, ("block_frames",))})
