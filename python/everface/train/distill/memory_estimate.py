"""Memory of each GPU in stage 2, estimated from the plan before anything is built, and the layout of the ranks.

Trained weights are float32 with a float32 gradient, average and two moments; frozen weights and everything gathered are bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from everface.core.config import DiTConfig
from everface.networks.sizes import dit_parameters, ring_values, sink_values, step_work_values
from everface.networks.transformer.dit import cache_shape
from everface.train.distill.plans import ModelPlan

GIB = 2**30
GPUS = (8, 128)
MEMORY_GIB = 79.6  # of an H100 with 80 GB, as its driver reports
SLACK = 1.15  # allocator, NCCL buffers, kernels' workspaces


@dataclass(frozen=True)
class ShardLayout:
    """Groups of ranks, each of which holds one model together."""

    gpus: int
    shard: int  # ranks of a group
    copies: int  # groups
    clips: int  # of a rank in an iteration, one after the other


def layout(plan: ModelPlan, gpus: int) -> ShardLayout:
    """The plan on so many GPUs. Raises ValueError where the batch or the groups do not divide."""
    shard = min(plan.stage2.shard_group, gpus) if plan.stage2.shard else 1
    if gpus % shard or plan.stage2.micro_batches % gpus:
        raise ValueError(f"{plan.stage2.micro_batches} clips on {gpus} GPUs in groups of {shard}")
    return ShardLayout(gpus, shard, gpus // shard, plan.stage2.micro_batches // gpus)


def adapter_parameters(cfg: DiTConfig, rank: int) -> int:
    """Parameters of a LoRA on the official targets: q, k, v, o of three attentions, and both sides of the FFN."""
    square = 8 * cfg.num_layers + 4 * len(cfg.audio_inject_layers)
    return rank * (square * 2 * cfg.dim + 2 * cfg.num_layers * (cfg.dim + cfg.ffn_dim))


def estimate_memory(plan: ModelPlan, lay: ShardLayout) -> tuple[dict[str, float], dict[str, float]]:
    """GiB of one GPU: (what is always there, by owner; what is added in each phase of an iteration)."""
    cfg, two, (h, w) = plan.model.dit, plan.stage2, plan.latent
    parameters = sum(dit_parameters(cfg))
    trained = adapter_parameters(cfg, two.lora_rank) if two.lora_rank else parameters
    frozen = 2 * parameters if two.lora_rank else parameters  # bases of student and teacher; or the teacher alone
    (_, slots, _, _), (_, sink, _, _) = cache_shape(cfg, h, w)
    tokens = slots // cfg.window_blocks
    item = 2 if two.shard else 4  # bytes of an activation
    largest = 2 * (4 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim)  # one block in use and the next one gathered
    roots = parameters - cfg.num_layers * (8 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim)
    rings = (two.steps if two.history == "own" else 1) * ring_values(cfg, h, w)
    # Saved for the backward pass: with checkpointing a layer's input; without, all activations. One layer always has all of them.
    replay_open = 3 * step_work_values(cfg, h, w) + 2 * (slots + sink) * cfg.dim
    window_open = two.blocks * 3 * step_work_values(cfg, h, w) + 2 * (two.blocks * tokens + sink) * cfg.dim
    layers = cfg.num_layers
    if two.checkpoint_activations:
        replay = layers * 2 * tokens * cfg.dim * 2 + replay_open  # the residual stream in float32, and what is added to it
        fake = layers * two.blocks * tokens * cfg.dim * 2 + window_open
    else:
        replay, fake = layers * replay_open, layers * window_open
    values = cfg.num_layers * sink * cfg.dim  # of a sink, kept to be copied into the rings
    ring, sinks = item * ring_values(cfg, h, w) / GIB, item * 2 * (sink_values(cfg, h, w) + values) / GIB
    always = {
        "trained weights": 2 * 4 * trained / lay.shard / GIB,
        "frozen weights": item * frozen / lay.shard / GIB,
        "gradients and moments": 2 * 12 * trained / lay.shard / GIB,
        "average": 4 * trained / lay.shard / GIB,
        "gathered units": item * (largest + roots) / GIB if two.shard else 0.0,
    }
    phases = {
        "rollout: rings": item * rings / GIB + sinks + item * step_work_values(cfg, h, w) / GIB,
        "replay: ring, graph": 2 * ring + sinks + item * replay / GIB,
        "fake: graph of the clip": item * fake / GIB,
    }
    return always, phases


def peak(always: dict[str, float], phases: dict[str, float]) -> float:
    """GiB at the peak: the phases of an iteration follow one another."""
    return SLACK * (sum(always.values()) + max(phases.values()))


def table(plan: ModelPlan, gpus: tuple[int, ...] = GPUS) -> str:
    """The layouts side by side, for full weights or LoRA as in the plan. The verdict includes SLACK."""
    two, cfg = plan.stage2, plan.model.dit
    parameters = sum(dit_parameters(cfg))
    trained = f"LoRA of rank {two.lora_rank} ({adapter_parameters(cfg, two.lora_rank) / 1e6:.0f} M)" if two.lora_rank else "all weights"
    lines = [
        f"{plan.model.name}: {parameters / 1e9:.3f} G parameters, training {trained}; rollouts of {two.blocks} blocks, {two.steps} steps",
        f"{two.micro_batches} clips per iteration, {two.ratio} iterations per update of the student; latents {plan.latent[0]}x{plan.latent[1]}",
        "",
    ]
    lays = [layout(fitting(plan, n), n) for n in gpus]
    columns = [estimate_memory(plan, lay) for lay in lays]
    lines.append(f"{'GiB per GPU':<26}" + "".join(f"{f'{n} H100':>12}" for n in gpus))
    for part, sign in ((0, ""), (1, "+ ")):
        lines += [f"{sign + owner:<26}" + "".join(f"{c[part][owner]:12.1f}" for c in columns) for owner in columns[0][part]]
    peaks = [peak(*column) for column in columns]
    lines.append(f"{f'peak, x {SLACK:.2f}':<26}" + "".join(f"{n:12.1f}" for n in peaks))
    lines.append(f"{f'fits {MEMORY_GIB}':<26}" + "".join(f"{'yes' if n < MEMORY_GIB else 'NO':>12}" for n in peaks))
    rows = {"ranks per model": "shard", "copies of it": "copies", "clips per rank": "clips"}
    lines += [f"{label:<26}" + "".join(f"{getattr(lay, name):>12}" for lay in lays) for label, name in rows.items()]
    return "\n".join(lines)


def fitting(plan: ModelPlan, gpus: int) -> ModelPlan:
    """The plan with at least one clip per rank."""
    micro_batches = -(-plan.stage2.micro_batches // gpus) * gpus
    return replace(plan, stage2=replace(plan.stage2, micro_batches=micro_batches))
