"""A training run of one transformer: its schedule, its journal, its checkpoints. Teacher and stage 1 differ in their loss alone."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file

from everface.core.config import DiTConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.model.dit import DiT
from everface.train.data.clips import Clips, read_clips
from everface.train.engine.optimizer import Ema, Optimiser, Part, Progress, autocast, read_state, write_state
from everface.train.engine.ranks import Ranks, clip_gradients, ranks, whole
from everface.train.engine.run_log import Journal
from everface.train.pretrain.plans import Pace
from everface.train.pretrain.windows import Window, WindowModel, region_weight, window_loss
from everface.weights.store import write_safetensors

SAVE_EVERY_S = 90
JOURNAL_EVERY, VALID_EVERY = 25, 250  # updates
Draw = Callable[[Clips, int, int, random.Random, str], Window]
"""(clips, how many of them, blocks, dice, device) -> a window."""
Loss = Callable[[int, int, int], torch.Tensor]
"""(number of the window, blocks, clips) -> loss. The number decides everything random."""


def learn(
    run_dir: Path, clips_dir: Path, pace: Pace, config: DiTConfig, device: str, init: Path | None, draw: Draw, *, full: bool = False
) -> Path:
    """Train on the windows that `draw` draws and return the path of the averaged weights, `run_dir/dit.safetensors`. Resumes.

    init: weights to start from. full: every block sees the whole window.
    """
    train, valid = split_clips(clips_dir, pace.held_out)
    with ranks(device) as among:
        dit = new_dit(config, pace.seed, init).to(among.device)
        model = WindowModel(dit, full=full, again=pace.checkpoint)
        h, w = train.latents_N16Thw.shape[-2:]
        weight = region_weight(h, w, pace.mouth, pace.eyes).to(among.device)

        def loss(window: Window, seed: int) -> torch.Tensor:
            return window_loss(model, window, weight, torch.Generator().manual_seed(seed), pace.noise_correlation)

        def loss_of(number: int, blocks: int, batch: int) -> torch.Tensor:
            window = draw(train, batch, blocks, random.Random(pace.seed * 7_919_003 + number), among.device)
            return loss(window, pace.seed * 1_000_003 + number)

        @torch.no_grad()
        def validate() -> float:
            """Loss on unseen characters, on the same noise every time."""
            count = min(6, len(valid))
            return sum(loss(draw(valid, count, 4, random.Random(k), among.device), k).item() for k in range(6)) / 6

        log.info("%s: %d clips, %.2f M parameters", type(pace).__name__, len(train), sum(p.numel() for p in dit.parameters()) / 1e6)
        return descend(run_dir, pace, dit, loss_of, validate, among)


def descend(run_dir: Path, pace: Pace, dit: DiT, loss_of: Loss, validate: Callable[[], float], ranks: Ranks) -> Path:
    """Train `dit` and return the path of its averaged weights, `run_dir/dit.safetensors`. Goes on where run_dir holds a checkpoint.

    `validate` is called with the averaged weights in place. Every rank must call; rank 0 writes the journal and the weights.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if pace.shard and ranks.world > 1:
        ranks.shard(dit, pace.shard_over)
    share, sharded = ranks.share(pace.micros), pace.shard and ranks.world > 1
    optimiser, ema = Optimiser(dit, muon=check_muon(pace, sharded)), Ema(dit, pace.ema)
    parts = {"": Part(dit, optimiser, ema)}
    state = state_file(run_dir, ranks)
    progress = read_state(state, parts)
    clock = Clock(pace, progress, ranks)
    with Journal(run_dir, ranks.rank) as journal:
        while (done := clock.done()) < 1:
            _, blocks, batch = next(c for c in reversed(pace.curriculum) if done >= c[0])
            optimiser.zero_grad()
            total = 0.0
            for micro in share:
                with autocast(ranks.device.partition(":")[0]):
                    loss = loss_of(progress.step * pace.micros + micro, blocks, batch) / pace.micros
                (loss * ranks.factor(sharded)).backward()
                total += loss.item()
            ranks.reduce(dit)
            norm = clip_gradients(dit, 1.0)
            optimiser.step(pace.lr * learning_rate(done, progress.step, pace))
            ema.update(dit)
            clock.tick()
            journal.add(loss=ranks.total(total)[0])
            if progress.step % JOURNAL_EVERY == 0:
                row = {"step": progress.step, "seconds": round(progress.seconds), "blocks": blocks, "norm": round(norm, 3)}
                if progress.step % VALID_EVERY == 0:
                    with ema.swapped(dit):
                        row["valid"] = round(validate(), 5)
                journal.write(row)
            if clock.save_due():
                write_progress(state, run_dir, parts, progress, ranks)
        journal.end({"step": progress.step, "seconds": round(progress.seconds)})
    write_progress(state, run_dir, parts, progress, ranks)
    return finish(run_dir, dit, ema, asdict(pace) | {"steps_done": progress.step}, ranks)


class Clock:
    """How much of the run is done: by steps where the plan counts them, else by the time that rank 0 has spent, over all sittings."""

    def __init__(self, pace: Pace, progress: Progress, ranks: Ranks) -> None:
        self.pace, self.progress, self.ranks = pace, progress, ranks
        self.began = time.monotonic() - progress.seconds
        self.saved = time.monotonic()

    def done(self) -> float:
        if self.pace.iterations:
            return self.progress.step / self.pace.iterations
        return self.ranks.agree((time.monotonic() - self.began) / (60 * self.pace.minutes))

    def tick(self) -> None:
        self.progress.step, self.progress.seconds = self.progress.step + 1, time.monotonic() - self.began

    def save_due(self) -> bool:
        if self.ranks.agree(time.monotonic() - self.saved) < SAVE_EVERY_S:
            return False
        self.saved = time.monotonic()
        return True


def learning_rate(done: float, step: int, pace: Pace) -> float:
    """Factor of the learning rate: warm-up by steps, then constant, then linear to 2 %."""
    fall = 1.0 if pace.decay_from >= 1 else max(0.02, 1 - max(0.0, done - pace.decay_from) / (1 - pace.decay_from))
    return min(1.0, (step + 1) / pace.warmup_steps) * fall


def check_muon(pace: Pace, sharded: bool) -> bool:
    if pace.muon and sharded:
        raise BadInput("Muon needs whole matrices: set muon=false to shard, or shard=false")
    return pace.muon


def state_file(run_dir: Path, ranks: Ranks) -> Path:
    """Every rank its own: of a sharded run it holds that rank's share, so a run goes on with as many ranks as it began with."""
    held = sorted(run_dir.glob("checkpoint*.safetensors"))
    path = run_dir / ("checkpoint.safetensors" if ranks.world == 1 else f"checkpoint.{ranks.rank}of{ranks.world}.safetensors")
    if held and path not in held:
        raise BadInput(f"{run_dir} holds a run of another number of ranks ({held[0].name}): go on with as many, or begin elsewhere")
    return path


def write_progress(state: Path, run_dir: Path, parts: dict[str, Part], progress: Progress, ranks: Ranks) -> None:
    write_state(state, parts, progress)
    if ranks.rank == 0:
        (run_dir / "progress.json").write_text(json.dumps({"step": progress.step, "seconds": progress.seconds}) + "\n")
    ranks.total(0.0)  # nobody runs ahead of a checkpoint that another has not written


def finish(run_dir: Path, dit: DiT, ema: Ema, plan: dict, ranks: Ranks, name: str = "dit.safetensors") -> Path:
    """Write the averaged weights, gathered one after another, and the plan; the path of the weights."""
    path = run_dir / name
    named = dict(dit.named_parameters())
    if ranks.rank == 0:
        shapes = {n: (torch.float32, tuple(named[n].shape)) for n in ema.weights}
        write_safetensors(path, shapes, lambda n: whole(ema.weights[n], named[n]).cpu().contiguous(), {})
        (run_dir / "plan.json").write_text(json.dumps(plan | {"block_frames": dit.cfg.block_frames}, indent=2) + "\n")
    else:
        for n in sorted(ema.weights):
            whole(ema.weights[n], named[n])
    ranks.total(0.0)
    return path


def new_dit(config: DiTConfig, seed: int, init: Path | None = None) -> DiT:
    """A freshly initialised transformer, whose residual branches, modulation and head start at or near zero; or that of a file."""
    torch.manual_seed(seed)
    dit = DiT(config)
    if init is not None:
        try:
            dit.load_state_dict(load_file(init), strict=True)
        except (OSError, RuntimeError) as error:
            raise BadInput(f"{init} does not hold weights of this size ({str(error).splitlines()[0]}): finish its run first") from None
        return dit
    for name, p in dit.named_parameters():
        if name.endswith(("modulation", "trainable_cond_mask.weight", "padding_tokens")):
            torch.nn.init.normal_(p, std=0.02)
        elif p.dim() > 1:
            torch.nn.init.normal_(p, std=1 / math.sqrt(p[0].numel()))
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
        if name.endswith((".o.weight", "ffn.2.weight", "head.head.weight", "adain_layers.weight")):
            torch.nn.init.normal_(p, std=0.1 / math.sqrt(p[0].numel()))
    return dit


def split_clips(folder: Path, held_out: int) -> tuple[Clips, Clips]:
    """(those to train on, those to validate on)."""
    clips = read_clips(folder)
    if len(clips) <= held_out + 16:
        raise BadInput(f"{folder} holds {len(clips)} clips, too few to train on: make more with `everface train data`")
    return (
        Clips(clips.latents_N16Thw[held_out:], clips.features_NLCF[held_out:]),
        Clips(clips.latents_N16Thw[:held_out], clips.features_NLCF[:held_out]),
    )
