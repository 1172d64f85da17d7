"""Plans of the teacher and of stage 1. Their defaults are those of drawn characters (docs/training)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from everface.core.config import DiTConfig
from everface.core.errors import BadInput
from everface.core.regions import Box
from everface.networks.motion import POSE
from everface.train.engine.plan import RunPlan

# The transformer of drawn characters: small enough for two CPU cores in real time, official classes and key names.
TINY_DIT = DiTConfig(
    dim=192, ffn_dim=768, freq_dim=128, num_heads=4, num_layers=6, text_dim=16, text_len=1, audio_dim=160, wav2vec_layers=1,
    audio_inject_layers=(0, 1, 2, 3, 4, 5),
)  # fmt: skip
# Rendered people: features of its own voice, and of what it hears; a pose; a token a latent cell, as 128 numbers of four are too many for this width;
# and so a window of two blocks, which costs what four cost otherwise.
HEADS_DIT = replace(TINY_DIT, in_dim=32, out_dim=32, cond_dim=POSE, audio_dim=320, patch_size=(1, 1, 1), window_blocks=2)
LARGE_HEADS_DIT = replace(
    HEADS_DIT, patch_size=(1, 2, 2), window_blocks=4, dim=1024, ffn_dim=4096, freq_dim=256, num_heads=8, num_layers=10, audio_inject_layers=(0, 2, 4, 6, 8)
)  # fmt: skip
HISTORIES = ("own", "clean", "fixed")
OWN_LEAST = 0.05  # a step from a lower level changes the latents by too little to mend anything


@dataclass(frozen=True)
class TransformerPlan(RunPlan):
    """What every run of a transformer has."""

    micro_batches: int = 1  # that an update sums over; ranks divide them, so a multiple of their number
    muon: bool = True  # False: AdamW for matrices too, which can be sharded
    shard: bool = False  # FSDP2 over the ranks; False: every rank holds everything
    shard_group: int = 8  # ranks that hold one model together; other groups hold copies
    checkpoint_activations: bool = False  # of the transformer's blocks
    held_out: int = 48  # clips for the validation loss: other people, but with voices of the training
    noise_correlation: float = 0.9  # of the starting noise from one latent frame to the next; the runtime must use the same
    mouth_weight: float = 5.0  # loss weight of the drawn characters' mouths, and of their eyes; 1 where faces are anywhere
    eyes_weight: float = 12.0
    curriculum: tuple[tuple[float, int, int], ...] = ((0.0, 2, 10), (0.2, 3, 7), (0.45, 5, 4))  # (from, blocks, clips a batch)
    region: Box | None = None  # of the image, that the transformer makes; the rest stays as in the image. The runtime must use the same
    one_block_share: float = 0.0  # of the batches that are of clips of one block, where there are some: see data.clips.ONE_BLOCK
    smaller_share: float = 0.0  # of the batches that are of the clips at a smaller size, where there are some: see data.clips.smaller_folders

    def sharded(self, world: int) -> bool:
        """Whether a run over so many ranks is sharded. Raises BadInput where Muon would have to step along a part of a matrix."""
        sharded = self.shard and world > 1
        if self.muon and sharded:
            raise BadInput("Muon needs whole matrices: set muon=false to shard, or shard=false")
        return sharded


@dataclass(frozen=True)
class TeacherPlan(TransformerPlan):
    """The bidirectional model: one noise level a clip, uniform and then shifted."""

    minutes: float = 40.0
    shift: float = 3.0
    audio_dropout: float = 0.1  # share of the clips without audio, for classifier-free guidance
    refresh: bool = True  # the student's (StreamingPlan): it decides which references the scores of stage 2 are asked about


@dataclass(frozen=True)
class StreamingPlan:
    """How a student is streamed, and so how it is trained. Values other than the defaults are for ablation."""

    steps: int = 4  # of the sampler
    refresh: bool = True  # adaptive attention sink
    rolling: bool = True  # rolling RoPE: the reference keeps its distance ahead of the block
    history: str = "own"  # own: a KV ring per step (timestep forcing); clean, fixed: one ring, from another pass at history_sigma
    history_sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.history not in HISTORIES:
            raise BadInput(f"unknown history {self.history!r}: choose one of {', '.join(HISTORIES)}")
        if not 1 <= self.steps <= 8:
            raise BadInput(f"steps {self.steps}: take 1..8")

    @property
    def past_sigma(self) -> float:
        """The noise level of the history in the one shared ring."""
        return self.history_sigma if self.history == "fixed" else 0.0


@dataclass(frozen=True)
class Stage1Plan(TransformerPlan, StreamingPlan):
    """Diffusion forcing. The blocks of a window share one noise level or have one each; a level is one of the sampler's or any."""

    sampler_levels: float = 0.85  # share of the levels that are the sampler's
    shared_level: float = 0.5  # share of the clips with one level for all blocks; 0: independent levels, as in the paper
    shift: float = 3.0  # of the other levels
    own_share: float = 0.0  # share of the clips at one of the sampler's levels between noise and OWN_LEAST that came there by the model's own steps
    scaffold: float = 0.3  # share of the windows with the true past as motion frames, each noised on its own with t ~ U[0, 1000]
    start_share: float = 0.3  # of the windows are at the start of a stream
    far_share: float = 0.4  # of the windows are between block 200 and `max_block`; the rest in between
    max_block: int = 100_000
    min_sink_distance: int = 4  # latent frames from a block to the reference ahead of it, drawn for each block
    max_sink_distance: int = 30
