"""The training loop of every run: clock, checkpoints, log and measurements. What is trained is the caller's `update`.

    train(run_dir, plan, {"": model}, update, Ranks(), measure=...)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from everface.core.memory import keep_freed_memory
from everface.train.engine.checkpoint import (
    Progress,
    TrainedModel,
    agree_on_step,
    checkpoint_path,
    read_checkpoint,
    write_checkpoint,
)
from everface.train.engine.plan import RunPlan
from everface.train.engine.ranks import Ranks
from everface.train.engine.run_log import RunLog
from everface.train.engine.sharding import clip_gradients

SAVE_EVERY_S = 60
LOG_EVERY = 25  # updates
STEADY_STEPS, LONGEST_STEP = 20, 20.0  # steps after which one counts as at most so many of the others
Update = Callable[[int, float, RunLog], None]
"""(step, share of the run that is behind, log): one update of the models, which adds its figures to the log."""


def train(
    run_dir: Path,
    plan: RunPlan,
    models: Mapping[str, TrainedModel],
    update: Update,
    ranks: Ranks,
    *,
    measure: Callable[[], dict[str, float]] | None = None,
    measure_every: int = 250,
    measure_last: bool = False,
    until: float | None = None,
) -> Progress:
    """Update until the plan is done. Resumes where run_dir holds a checkpoint; all ranks must call, rank 0 writes the log.

    `until`: a time of time.monotonic() at which to stop before that, to resume later; what it returns tells how far the run came.
    `measure` returns more figures for the log, every so many updates and, with `measure_last`, at the end.
    """
    keep_freed_memory()  # a tenth of a step on a CPU
    run_dir.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(run_dir, ranks)
    progress = read_checkpoint(path, models)
    agree_on_step(path, progress, ranks)
    clock, measured = Clock(plan, progress, ranks), progress.step
    with RunLog(run_dir, ranks.rank) as log:
        while (done := clock.done()) < 1 and not clock.is_late(until):
            update(progress.step, done, log)
            clock.tick()
            if progress.step % LOG_EVERY == 0:
                row = clock.row()
                if measure and progress.step % measure_every == 0:
                    row, measured = row | measure(), progress.step
                log.write(row)
            if clock.save_due():
                save(path, run_dir, models, progress, ranks)
        save(path, run_dir, models, progress, ranks)
        if measure and measure_last and measured != progress.step:
            log.write(clock.row() | measure())
        elif log.added:
            log.write(clock.row())
    return progress


class Clock:
    """How much of a run is done: by steps where the plan counts them, else by the time that rank 0 has spent on it, all its processes
    included. Of a step that took far longer than others, because the process or its machine was stopped, the excess does not count."""

    def __init__(self, plan: RunPlan, progress: Progress, ranks: Ranks) -> None:
        self.plan, self.progress, self.ranks = plan, progress, ranks
        self.ticked = self.saved = time.monotonic()

    def done(self) -> float:
        if self.plan.iterations:
            return self.progress.step / self.plan.iterations
        return self.ranks.from_rank_0(self.progress.seconds / (60 * self.plan.minutes))

    def tick(self) -> None:
        now, progress = time.monotonic(), self.progress
        spent, self.ticked = now - self.ticked, now
        if progress.step >= STEADY_STEPS:
            spent = min(spent, LONGEST_STEP * progress.seconds / progress.step)
        progress.step, progress.seconds = progress.step + 1, progress.seconds + spent

    def row(self) -> dict[str, float]:
        return {"step": self.progress.step, "seconds": round(self.progress.seconds)}

    def is_late(self, until: float | None) -> bool:
        return until is not None and self.ranks.from_rank_0(float(time.monotonic() >= until)) > 0

    def save_due(self) -> bool:
        if self.ranks.from_rank_0(time.monotonic() - self.saved) < SAVE_EVERY_S:
            return False
        self.saved = time.monotonic()
        return True


def save(path: Path, run_dir: Path, models: Mapping[str, TrainedModel], progress: Progress, ranks: Ranks) -> None:
    """The checkpoint, and how far the run is in progress.json. All ranks wait until each has written."""
    write_checkpoint(path, models, progress)
    if ranks.rank == 0:
        (run_dir / "progress.json").write_text(json.dumps({"step": progress.step, "seconds": progress.seconds}) + "\n")
    ranks.barrier()


def accumulate_gradients(
    model: TrainedModel, losses: Iterable[torch.Tensor], micro_batches: int, ranks: Ranks, sharded: bool = False
) -> float:
    """Gradients of the mean of `losses`, of which there are `micro_batches` over all ranks; those are drawn one at a time. Returns the
    mean, over this rank's part."""
    model.optimizer.zero_grad()
    total, scale = 0.0, ranks.loss_factor(sharded) / micro_batches
    for loss in losses:
        (loss * scale).backward()
        total += loss.item() / micro_batches
    return total


def apply_gradients(model: TrainedModel, lr: float, ranks: Ranks) -> float:
    """Sum gradients over the ranks, clip them to a norm of 1, step, and average the weights. Returns the norm before clipping."""
    ranks.sum_gradients(model.module)
    norm = clip_gradients(model.module, 1.0)
    model.optimizer.step(lr)
    if model.ema is not None:
        model.ema.update(model.module)
    return norm
