"""Every size and schedule of the two-stage distillation, as frozen plans: `PLANS["tiny"]` and `PLANS["wan-s2v-14b"]`.

What the paper says (arXiv 2512.04677 v5, 4.2, 5.1) stands in wan-s2v-14b; what it leaves open is marked (ours). The default values of
the fields are those of the tiny model (docs/training).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from everface.core.config import AudioConfig, DiTConfig, ModelConfig, TextConfig
from everface.core.errors import BadInput
from everface.train.codec.vae import TINY_VAE

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Held = TypeVar("Held", bound="DataclassInstance")

# The default model's transformer: small enough for two CPU cores in real time, official classes and key names.
TINY = DiTConfig(
    dim=192, ffn_dim=768, freq_dim=128, num_heads=4, num_layers=6, text_dim=16, text_len=1, audio_dim=160, wav2vec_layers=1,
    audio_inject_layers=(0, 1, 2, 3, 4, 5),
)  # fmt: skip
HISTORIES = ("own", "clean", "fixed")


@dataclass(frozen=True)
class Pace:
    """How a run goes on. By the clock of this machine, or, with `iterations`, by steps: then a run is repeatable to the bit."""

    minutes: float = 45.0
    iterations: int = 0  # 0: by the clock
    lr: float = 2e-3
    warmup_steps: int = 60
    decay_from: float = 0.6  # of the run; linear to 2 % afterwards
    ema: float = 0.998
    seed: int = 1
    micros: int = 1  # batches an update sums over; ranks share them out, so a multiple of their number
    muon: bool = True  # False: AdamW for matrices too, which is what shards
    shard: bool = False  # FSDP2 over the ranks; False: every rank holds everything
    shard_over: int = 8  # ranks a model is spread over; more ranks hold copies of that group
    checkpoint: bool = False  # forget activations between transformer blocks and make them again
    held_out: int = 48  # clips kept for the validation loss
    noise_correlation: float = 0.9  # of the starting noise from one latent frame to the next; the runtime's must be the same
    mouth: float = 5.0  # loss weight of the drawn characters' mouths, and of their eyes; 1 where faces stand anywhere
    eyes: float = 12.0
    curriculum: tuple[tuple[float, int, int], ...] = ((0.0, 2, 10), (0.2, 3, 7), (0.45, 5, 4))  # (from, blocks, clips a batch)


@dataclass(frozen=True)
class Teacher(Pace):
    """The bidirectional model: one noise level a clip, uniform and then shifted."""

    minutes: float = 40.0
    shift: float = 3.0
    audio_drop: float = 0.1  # of the clips hear nothing, for guidance


@dataclass(frozen=True)
class Streamed:
    """How a student is streamed, and so how it is trained. Other values than these are for ablation only."""

    steps: int = 4  # of the sampler
    refresh: bool = True  # adaptive attention sink
    rolling: bool = True  # the reference rolls ahead of the block
    history: str = "own"  # own: each step its own ring (timestep forcing); clean, fixed: one ring, from a pass at history_sigma
    history_sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.history not in HISTORIES:
            raise BadInput(f"unknown history {self.history!r}: choose one of {', '.join(HISTORIES)}")
        if not 1 <= self.steps <= 8:
            raise BadInput(f"steps {self.steps}: take 1..8")

    @property
    def past_sigma(self) -> float:
        """The noise level of the one ring's history."""
        return self.history_sigma if self.history == "fixed" else 0.0


@dataclass(frozen=True)
class Stage1(Pace, Streamed):
    """Diffusion forcing. A window's blocks have one noise level or one each; a level is the sampler's own or anywhere."""

    on_levels: float = 0.85  # of the levels are the sampler's
    shared: float = 0.5  # of the clips have one level throughout; 0: independent, as the paper has it
    shift: float = 3.0  # of the levels that are anywhere
    scaffold: float = 0.3  # of the windows see the true past as motion frames, each noised on its own with t ~ U[0, 1000]
    near: float = 0.3  # of the windows stand at the start of a stream
    far: float = 0.4  # of the windows stand between 200 blocks and `reach`; the rest in between
    reach: int = 100_000  # blocks
    sink_nearest: int = 4  # latent frames that the reference stands ahead of a block, drawn for each
    sink_farthest: int = 30


@dataclass(frozen=True)
class Stage2(Pace, Streamed):
    """Self-forcing DMD. One iteration is a rollout and an update of the fake score; every `ratio`-th also one of the student."""

    minutes: float = 60.0
    lr: float = 1e-4  # of the student
    fake_lr: float = 3e-4
    warmup_steps: int = 10
    decay_from: float = 0.7
    ema: float = 0.95
    micros: int = 2
    muon: bool = False
    ratio: int = 5
    blocks: int = 5  # of a rollout
    shift: float = 3.0
    guidance: float = 1.0  # of the real score; 1: none
    lowest: float = 0.02  # noise level at which the scores are compared, and its opposite
    highest: float = 0.98
    near: float = 0.5  # of the rollouts begin with the stream, the others anywhere up to `reach`
    reach: int = 100_000
    rank: int = 0  # of the LoRA; 0: all weights
    alpha: float = 64.0
    # Against frozen motion (DynaForcing); 0 switches each off.
    truth_start: float = 0.3  # of the rollouts start from noised truth; owner: stage2.draw_course
    reward: float = 0.1  # gradients are weighed by exp(reward * R); owner: reward.Reward
    reward_motion: float = 0.5  # weight of motion in R, where the lips have 1
    perturb: float = 0.3  # of the reference pictures are others of the same character, noised; owner: stage2.draw_scene
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio < 1 or self.blocks < 1:
            raise BadInput(f"ratio {self.ratio}, blocks {self.blocks}: take at least 1")


@dataclass(frozen=True)
class Plan:
    """One model and its three phases."""

    model: ModelConfig
    latent: tuple[int, int]  # rows and columns of a latent frame
    teacher: Teacher
    stage1: Stage1
    stage2: Stage2


PLANS = {
    "tiny": Plan(
        ModelConfig(TINY, TINY_VAE, AudioConfig("logmel"), TextConfig("none"), "tiny", (128, 128)), (16, 16), Teacher(), Stage1(), Stage2()
    ),
    "wan-s2v-14b": Plan(
        ModelConfig(),
        (48, 88),
        # WanS2V itself is the teacher; the schedule is for fine-tuning it (ours).
        Teacher(
            iterations=5000, lr=1e-5, warmup_steps=200, ema=0.999, micros=128, muon=False, shard=True, checkpoint=True,
            noise_correlation=0.0, mouth=1.0, eyes=1.0, curriculum=((0.0, 7, 1),), shift=5.0,
        ),
        Stage1(
            iterations=25_000, lr=5e-5, warmup_steps=500, decay_from=0.9, ema=0.999, micros=128, muon=False, shard=True, checkpoint=True,
            noise_correlation=0.0, mouth=1.0, eyes=1.0, curriculum=((0.0, 7, 1),), on_levels=0.0, shared=0.0, shift=5.0, scaffold=1.0, reach=400,
        ),
        # 2500 iterations are 500 updates of the student; lr, rank, alpha, blocks and batch are the paper's, the ratio DynaForcing's.
        Stage2(
            iterations=2500, lr=1e-5, fake_lr=2e-6, warmup_steps=20, decay_from=1.0, ema=0.99, micros=128, shard=True, checkpoint=True,
            noise_correlation=0.0, mouth=1.0, eyes=1.0, blocks=7, rank=128, guidance=4.5, reach=400, truth_start=0.0, reward=0.0, perturb=0.0,
        ),
    ),
}  # fmt: skip


def changed(plan: Plan, phase: str, given: dict[str, Any], settings: list[str]) -> Plan:
    """The plan with fields of one phase replaced: by name, and by `field=value` as `settled` takes them. `block_frames` is the model's."""
    rest = []
    for setting in settings:
        name, _, text = setting.partition("=")
        if name == "block_frames" and text.isdecimal() and int(text) > 0:
            plan = replace(plan, model=replace(plan.model, dit=replace(plan.model.dit, block_frames=int(text))))
        else:
            rest.append(setting)
    held = replace(getattr(plan, phase), **given)
    return replace(plan, **{phase: settled(held, phase, rest, ("block_frames",))})


def settled(held: Held, phase: str, settings: list[str], others: tuple[str, ...] = ()) -> Held:
    """`held` with fields replaced by `field=value`, the value as JSON. `others`: names that a refusal offers too.

    Raises BadInput for a field that the phase does not have and for a value of another kind.
    """
    known, given = {f.name: getattr(held, f.name) for f in fields(held)}, {}
    for setting in settings:
        name, _, text = setting.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if name not in known:
            raise BadInput(f"{phase} has no field {name!r}: choose one of {', '.join(sorted([*known, *others]))}")
        kind = type(known[name])
        if kind is tuple and isinstance(value, list):
            value = tuple(tuple(v) for v in value)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise BadInput(f"{name}={text} is no {kind.__name__}, which {phase}.{name} is")
        given[name] = value
    return replace(held, **given)
