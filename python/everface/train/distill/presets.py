"""The models that can be trained: `PRESETS["tiny"]`, of drawn characters; "heads-256", the default model, and "heads-384", of rendered people;
and "wan-s2v-14b", the paper's.

The values of wan-s2v-14b are those of the paper (arXiv 2512.04677 v5, sections 4.2 and 5.1), or ours where it gives none.
"""

from __future__ import annotations

from dataclasses import replace

from everface.core.config import AudioConfig, DiTConfig, LipsConfig, ModelConfig, TextConfig, VAEConfig
from everface.train.codec.model import HEADS_VAE, LARGE_HEADS_VAE, TINY_VAE
from everface.train.data.clips import IMAGE_SIZE, STILL_FRAMES
from everface.train.distill.plans import ModelPlan, Stage2Plan
from everface.train.pretrain.plans import HEADS_DIT, LARGE_HEADS_DIT, TINY_DIT, Stage1Plan, TeacherPlan

FACE = (3 / 16, 4 / 16, 13 / 16, 15 / 16)  # in the image of a head that is still: around it nothing moves (docs/training/heads.md)


LIPS = LipsConfig(jaw=1.15, wider=0.12, narrower=0.13, taller=0.22)  # measured with the bundled weights (docs/decisions/0017-lips.md)


def _trained(dit: DiTConfig, vae: VAEConfig, name: str, side: int, lips: LipsConfig | None = None, smaller: tuple[int, ...] = ()) -> ModelConfig:
    """A model that is trained here: log-mel audio, no text, square videos; with `lips` of people."""
    heads, sizes = lips is not None, tuple((side, side) for side in smaller)
    base = ModelConfig(dit, vae, AudioConfig("logmel", listens=heads), TextConfig("none"), name, (side, side), still_frames=STILL_FRAMES, smaller=sizes)
    return base if lips is None else replace(base, motion=True, lips=lips, region=FACE)


# With the drawn characters' weights of 5 and 12 eyes have 63 % of the loss's weight, mouths 23 % (characters.region_weight); so 46 and 39 %.
# What a stream shows the model, and nothing else: the image as the reference, one of the sampler's levels for all blocks.
_HEADS_STAGE1 = Stage1Plan(mouth_weight=8.0, eyes_weight=8.0, region=FACE, refresh=False, scaffold=0.0, shared_level=1.0, sampler_levels=1.0)

PRESETS = {
    "tiny": ModelPlan(
        _trained(TINY_DIT, TINY_VAE, "everface tiny: drawn characters, 128x128", IMAGE_SIZE),
        (16, 16),
        TeacherPlan(),
        Stage1Plan(),
        Stage2Plan(),
    ),
    "heads-256": ModelPlan(
        _trained(HEADS_DIT, HEADS_VAE, "everface heads: rendered people, 256x256", 256, LIPS, smaller=(192,)),
        (16, 16),
        TeacherPlan(region=FACE, refresh=False, curriculum=((0.0, 5, 128),)),
        replace(
            _HEADS_STAGE1, minutes=9.0, warmup_steps=100, decay_from=0.5, ema=0.999, smaller_share=0.15, curriculum=((0.0, 2, 160),)
        ),
        Stage2Plan(region=FACE, refresh=False, reward=0.0),
    ),
    "heads-384": ModelPlan(
        _trained(LARGE_HEADS_DIT, LARGE_HEADS_VAE, "everface heads: rendered people, 384x384", 384, LipsConfig()),
        (24, 24),
        TeacherPlan(region=FACE, refresh=False, curriculum=((0.0, 5, 32),)),
        replace(_HEADS_STAGE1, minutes=60.0, lr=1e-3, warmup_steps=200, ema=0.9995, curriculum=((0.0, 2, 96), (0.15, 3, 64), (0.4, 5, 32))),
        Stage2Plan(region=FACE, refresh=False, reward=0.0),
    ),
    "wan-s2v-14b": ModelPlan(
        ModelConfig(),
        (48, 88),
        # WanS2V itself is the teacher; this schedule, for fine-tuning it, is ours.
        TeacherPlan(
            iterations=5000, lr=1e-5, warmup_steps=200, ema=0.999, micro_batches=128, muon=False, shard=True, checkpoint_activations=True,
            noise_correlation=0.0, mouth_weight=1.0, eyes_weight=1.0, curriculum=((0.0, 7, 1),), shift=5.0,
        ),
        Stage1Plan(
            iterations=25_000, lr=5e-5, warmup_steps=500, decay_from=0.9, ema=0.999, micro_batches=128, muon=False, shard=True,
            checkpoint_activations=True, noise_correlation=0.0, mouth_weight=1.0, eyes_weight=1.0, curriculum=((0.0, 7, 1),),
            sampler_levels=0.0, shared_level=0.0, shift=5.0, scaffold=1.0, max_block=400,
        ),
        # 2500 iterations are 500 updates of the student. Learning rate, LoRA, blocks and batch are the paper's, the ratio DynaForcing's.
        # Not the paper's: the prompt is null, as clips have no text (scenes.draw_scene gives zeros), and of its four exit steps the last is never
        # drawn (scenes.draw_course).
        Stage2Plan(
            iterations=2500, lr=1e-5, fake_lr=2e-6, warmup_steps=20, decay_from=1.0, ema=0.99, micro_batches=128, shard=True,
            checkpoint_activations=True, noise_correlation=0.0, mouth_weight=1.0, eyes_weight=1.0, blocks=7, lora_rank=128, guidance=4.5,
            max_block=400, truth_start=0.0, reward=0.0, perturb_reference=0.0,
        ),
    ),
}  # fmt: skip
