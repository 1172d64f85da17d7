"""What a run consists of, and the plan at tiny sizes that a test and a rehearsal use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from everface.core.config import ModelConfig
from everface.train.codec.vae import VAEPlan
from everface.train.distill.presets import PRESETS
from everface.train.heads.articulation import ArticulationPlan
from everface.train.heads.clips import FRAMES
from everface.train.heads.mouth_finder import STEPS
from everface.train.pretrain.plans import Stage1Plan

SHORT_CLIP = 32  # frames: windows of two blocks fit


@dataclass(frozen=True)
class CropPlan(VAEPlan):
    """The codec's run on a GPU. Each batch has one shape, and some four million positions: 20 GB of activations."""

    minutes: float = 11.0
    warmup_steps: int = 60
    single_frames: float = 0.12
    decay_from: float = 0.45
    ema: float = 0.998
    single_batch: int = 48  # whole frames
    color_weight: float = 3.0  # of codec_loss
    moving_from: float = 0.8  # share of the run after which crops are of faces, and what moves in them weighs more
    moving_gain: float = 15.0  # of motion_weight
    crops: tuple[tuple[int, int, int], ...] = ((128, 37, 27), (128, 37, 27), (128, 37, 27), (192, 21, 20), (256, 17, 16))  # (side, frames, crops)
    least_clips: int = 64  # that must be rendered before the first step


@dataclass(frozen=True)
class CpuCropPlan(CropPlan):
    """On two cores: batches of a million positions, 1.4 s each with AMX."""

    minutes: float = 290.0
    single_batch: int = 6
    crops: tuple[tuple[int, int, int], ...] = ((128, 37, 2), (128, 37, 2), (128, 21, 4), (192, 21, 2), (256, 17, 1))
    held_out: int = 8


@dataclass(frozen=True)
class ChainPlan:
    """Everything but paths and the minutes of one call. `vae` and `stage1` have their own minutes, over all calls."""

    model: ModelConfig
    vae: CropPlan
    stage1: Stage1Plan
    clips: int = 3000  # at most: 13.6 MB each at 256x256
    held_out: int = 16  # people, with held-out voices
    least_clips: int = 0  # before stage 1 begins, if it needs fewer
    clip_frames: int = FRAMES  # of each; with fewer there are more people for the same time
    one_block_clips: int = 0  # and so many of one block, of other people: data.clips.ONE_BLOCK
    smaller_clips: int = 400  # that are encoded at the model's smaller sizes too
    views: int = 1  # others of each clip that stage 1 learns from too: chain.views
    articulation: ArticulationPlan = field(default_factory=ArticulationPlan)  # where no file is given
    mouth_finder_steps: int = STEPS
    seed: int = 1
    judge_each_call: bool = True  # False: only when all is trained


@dataclass(frozen=True)
class Rehearsal:
    """Sizes at which the whole of it takes a minute or two on a CPU."""

    side: int = 64
    clips: int = 20
    steps: int = 2
    plan: ChainPlan = field(init=False)

    def __post_init__(self) -> None:
        full = gpu_plan("heads-256")
        small = replace(
            full, model=replace(full.model, size=(self.side, self.side), smaller=()), clips=self.clips, held_out=2,
            articulation=ArticulationPlan(iterations=self.steps, batch=2, frames=20), mouth_finder_steps=self.steps,
            vae=replace(full.vae, iterations=self.steps, single_frames=0.5, single_batch=2, crops=((64, 13, 2),), least_clips=4, held_out=2),
            stage1=replace(full.stage1, iterations=self.steps, held_out=2, curriculum=((0.0, 2, 2),)),
        )  # fmt: skip
        object.__setattr__(self, "plan", small)


def gpu_plan(preset: str) -> ChainPlan:
    """The plan of a preset of `everface train --config`."""
    held = PRESETS[preset]
    plan = ChainPlan(held.model, CropPlan(), held.stage1)
    return replace(plan, clips=6000, clip_frames=SHORT_CLIP) if held.model.dit.window_blocks == 2 else plan  # 7.3 MB each


def cpu_plan(preset: str) -> ChainPlan:
    """The same for two cores: some six hours, and the time to render. Stage 1 is what follows an earlier one (docs/training/heads.md)."""
    held = PRESETS[preset]
    stage1 = replace(
        held.stage1, minutes=80.0, lr=2e-3, warmup_steps=60, decay_from=0.5, ema=0.998, held_out=60, smaller_share=0.1, curriculum=((0.0, 2, 8),)
    )  # fmt: skip
    return ChainPlan(held.model, CpuCropPlan(), stage1, clips=1200, least_clips=1200, clip_frames=SHORT_CLIP, smaller_clips=120, judge_each_call=False)
