"""The two models that can be trained: `PRESETS["tiny"]`, the default model, and `PRESETS["wan-s2v-14b"]`, the paper's.

The values of wan-s2v-14b are those of the paper (arXiv 2512.04677 v5, sections 4.2 and 5.1), or ours where it gives none.
"""

from __future__ import annotations

from everface.core.config import AudioConfig, ModelConfig, TextConfig
from everface.train.codec.model import TINY_VAE
from everface.train.data.clips import IMAGE_SIZE
from everface.train.distill.plans import ModelPlan, Stage2Plan
from everface.train.pretrain.plans import TINY_DIT, Stage1Plan, TeacherPlan

PRESETS = {
    "tiny": ModelPlan(
        ModelConfig(TINY_DIT, TINY_VAE, AudioConfig("logmel"), TextConfig("none"), "tiny", (IMAGE_SIZE, IMAGE_SIZE)),
        (IMAGE_SIZE // 8, IMAGE_SIZE // 8),
        TeacherPlan(),
        Stage1Plan(),
        Stage2Plan(),
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
        Stage2Plan(
            iterations=2500, lr=1e-5, fake_lr=2e-6, warmup_steps=20, decay_from=1.0, ema=0.99, micro_batches=128, shard=True,
            checkpoint_activations=True, noise_correlation=0.0, mouth_weight=1.0, eyes_weight=1.0, blocks=7, lora_rank=128, guidance=4.5,
            max_block=400, truth_start=0.0, reward=0.0, perturb_reference=0.0,
        ),
    ),
}  # fmt: skip
