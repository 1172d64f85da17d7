"""What stage 2 asks of each GPU, counted from the plan before anything is built: memory by owner, and how ranks are laid out.

Legend: P parameters of the transformer, L layers, D width, T tokens of a block, n blocks of a rollout, S ranks a model is spread over.
Weights under training are float32 with a float32 gradient, average and two moments; frozen ones and everything gathered are bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from everface.core.config import DiTConfig
from everface.model.dit import cache_shape
from everface.model.sizes import dit_parameters, ring_values, sink_values, step_work_values
from everface.train.pretrain.plans import Plan

GIB = 2**30
GPUS = (8, 128)
MEMORY_GIB = 79.6  # of an H100 of 80 GB, as its driver counts
SLACK = 1.15  # allocator, NCCL buffers, kernels' workspaces


@dataclass(frozen=True)
class Layout:
    """Ranks as groups that hold a model together, and copies of the group."""

    gpus: int
    shard: int
    copies: int
    clips: int  # of a rank, one after the other, before an update


def layout(plan: Plan, gpus: int) -> Layout:
    """Raises ValueError where the batch or the groups do not divide."""
    shard = min(plan.stage2.shard_over, gpus) if plan.stage2.shard else 1
    if gpus % shard or plan.stage2.micros % gpus:
        raise ValueError(f"{plan.stage2.micros} clips on {gpus} GPUs in groups of {shard}")
    return Layout(gpus, shard, gpus // shard, plan.stage2.micros // gpus)


def adapter_parameters(cfg: DiTConfig, rank: int) -> int:
    """Of the official LoRA's targets: q, k, v, o of three attentions, and both sides of the FFN."""
    square = 8 * cfg.num_layers + 4 * len(cfg.audio_inject_layers)
    return rank * (square * 2 * cfg.dim + 2 * cfg.num_layers * (cfg.dim + cfg.ffn_dim))


def memory(plan: Plan, lay: Layout) -> tuple[dict[str, float], dict[str, float]]:
    """GiB of one GPU: (what is always there by owner, what comes on top of it in each phase of an iteration)."""
    cfg, two, (h, w) = plan.model.dit, plan.stage2, plan.latent
    parameters = sum(dit_parameters(cfg))
    trained = adapter_parameters(cfg, two.rank) if two.rank else parameters
    frozen = 2 * parameters if two.rank else parameters  # bases of student and teacher; or the teacher alone
    (_, slots, _, _), (_, sink, _, _) = cache_shape(cfg, h, w)
    tokens = slots // cfg.window_blocks
    item = 2 if two.shard else 4  # bytes of an activation
    largest = 2 * (4 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim)  # a block under way and the next one gathered
    roots = parameters - cfg.num_layers * (8 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim)
    rings = (two.steps if two.history == "own" else 1) * ring_values(cfg, h, w)
    # Saved for the way back: with checkpointing a layer's input; without, everything a layer makes. One layer is always open.
    replay_open = 3 * step_work_values(cfg, h, w) + 2 * (slots + sink) * cfg.dim
    window_open = two.blocks * 3 * step_work_values(cfg, h, w) + 2 * (two.blocks * tokens + sink) * cfg.dim
    layers = cfg.num_layers
    if two.checkpoint:
        replay = layers * 2 * tokens * cfg.dim * 2 + replay_open  # the stream in float32, and what waits to be added
        fake = layers * two.blocks * tokens * cfg.dim * 2 + window_open
    else:
        replay, fake = layers * replay_open, layers * window_open
    values = cfg.num_layers * sink * cfg.dim  # of a sink, kept to be copied into rings
    ring, sinks = item * ring_values(cfg, h, w) / GIB, item * 2 * (sink_values(cfg, h, w) + values) / GIB
    always = {
        "weights under training": 2 * 4 * trained / lay.shard / GIB,
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


def need(always: dict[str, float], phases: dict[str, float]) -> float:
    """GiB at the worst moment: the phases of an iteration come one after the other."""
    return SLACK * (sum(always.values()) + max(phases.values()))


def table(plan: Plan, gpus: tuple[int, ...] = GPUS) -> str:
    """Both layouts side by side, full weights and LoRA as the plan has it; the verdict counts SLACK in."""
    two, cfg = plan.stage2, plan.model.dit
    parameters = sum(dit_parameters(cfg))
    way = f"LoRA of rank {two.rank} ({adapter_parameters(cfg, two.rank) / 1e6:.0f} M)" if two.rank else "all weights"
    lines = [
        f"{plan.model.name}: {parameters / 1e9:.3f} G parameters, training {way}; rollouts of {two.blocks} blocks, {two.steps} steps",
        f"{two.micros} clips an iteration, {two.ratio} iterations an update of the student; latents {plan.latent[0]}x{plan.latent[1]}",
        "",
    ]
    lays = [layout(fitting(plan, n), n) for n in gpus]
    columns = [memory(plan, lay) for lay in lays]
    lines.append(f"{'GiB a GPU':<26}" + "".join(f"{f'{n} H100':>12}" for n in gpus))
    for part, sign in ((0, ""), (1, "+ ")):
        lines += [f"{sign + owner:<26}" + "".join(f"{c[part][owner]:12.1f}" for c in columns) for owner in columns[0][part]]
    needs = [need(*column) for column in columns]
    lines.append(f"{f'most at once, x {SLACK:.2f}':<26}" + "".join(f"{n:12.1f}" for n in needs))
    lines.append(f"{f'fits {MEMORY_GIB}':<26}" + "".join(f"{'yes' if n < MEMORY_GIB else 'NO':>12}" for n in needs))
    rows = {"ranks a model": "shard", "copies of it": "copies", "clips a rank": "clips"}
    lines += [f"{says:<26}" + "".join(f"{getattr(lay, name):>12}" for lay in lays) for says, name in rows.items()]
    return "\n".join(lines)


def fitting(plan: Plan, gpus: int) -> Plan:
    """The plan with at least one clip a rank."""
    micros = -(-plan.stage2.micros // gpus) * gpus
    return replace(plan, stage2=replace(plan.stage2, micros=micros))
