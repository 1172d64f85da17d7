"""Checkpoints of a run: weights, optimizer state, averages and progress in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from everface.core.errors import BadInput
from everface.train.engine.ema import Ema
from everface.train.engine.optimizer import Optimizer
from everface.train.engine.ranks import Ranks
from everface.train.engine.sharding import local

UPDATES = "optimiser"  # key of the optimizer's step count, as it is spelled in every checkpoint there is


@dataclass
class Progress:
    """How far a run has come, over all its processes one after another."""

    step: int = 0
    seconds: float = 0.0


class TrainedModel(NamedTuple):
    """One model under training. A checkpoint holds its trained parameters; of sharded ones this rank's part."""

    module: nn.Module
    optimizer: Optimizer
    ema: Ema | None = None


def checkpoint_path(run_dir: Path, ranks: Ranks) -> Path:
    """Each rank has a file. In a sharded run it holds that rank's part, so a run must resume with as many ranks as it began with.

    Raises BadInput where run_dir holds the checkpoint of another number of ranks.
    """
    held = sorted(run_dir.glob("checkpoint*.safetensors"))
    names = [f"checkpoint.{rank}of{ranks.world}.safetensors" for rank in range(ranks.world)] if ranks.world > 1 else ["checkpoint.safetensors"]
    path = run_dir / names[ranks.rank]
    if held and not any(run_dir / name in held for name in names):  # the same for every rank: `agree_on_step` sees to the other cases
        raise BadInput(f"{run_dir} holds a run of another number of ranks ({held[0].name}): resume with as many, or use a new folder")
    return path


def agree_on_step(path: Path, progress: Progress, ranks: Ranks) -> None:
    """After `read_checkpoint`. Raises BadInput, on all ranks, where their files are not of one step: each is replaced at once, but not all together."""
    if not ranks.agree(progress.step if path.exists() else -1):
        raise BadInput(f"the checkpoints in {path.parent} are of different steps, because a save was interrupted: begin the run again in a new folder")


def write_checkpoint(path: Path, models: Mapping[str, TrainedModel], progress: Progress) -> None:
    """Write everything a run needs to resume, and replace `path` atomically. Each key begins with its model's name."""
    tensors, numbers = {}, {"step": progress.step, "seconds": progress.seconds}
    for name, (module, optimizer, ema) in models.items():
        tensors |= {f"{name}weight.{n}": local(p).detach() for n, p in module.named_parameters() if p.requires_grad}
        tensors |= {f"{name}state.{n}": t for n, t in optimizer.state.items()}
        numbers[f"{name}{UPDATES}"] = optimizer.count
        if ema is not None:
            tensors |= {f"{name}ema.{n}": t for n, t in ema.weights.items()}
            numbers[f"{name}ema"] = ema.count
    partial = path.with_suffix(".partial")
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial, {"progress": json.dumps(numbers)})
    os.replace(partial, path)


@torch.no_grad()
def read_checkpoint(path: Path, models: Mapping[str, TrainedModel]) -> Progress:
    """Restore what write_checkpoint wrote; a new Progress where there is no file."""
    if not path.exists():
        return Progress()
    with safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["progress"])
        keys = list(file.keys())
        for name, (module, optimizer, ema) in models.items():
            device = next(module.parameters()).device
            for n, p in module.named_parameters():
                if p.requires_grad:
                    local(p).copy_(file.get_tensor(f"{name}weight.{n}"))
            prefix = f"{name}state."
            optimizer.state = {k.removeprefix(prefix): file.get_tensor(k).to(device) for k in keys if k.startswith(prefix)}
            optimizer.count = numbers.get(f"{name}{UPDATES}", 0)
            if ema is not None:
                average = "ema" if f"{name}ema" in numbers else "weight"
                ema.weights = {n: file.get_tensor(f"{name}{average}.{n}").to(device, torch.float32) for n in ema.weights}
                ema.count = numbers.get(f"{name}ema", numbers["step"])
    return Progress(numbers["step"], numbers["seconds"])


def write_start(path: Path, weights: Mapping[str, torch.Tensor], progress: Progress) -> None:
    """A checkpoint made of the averaged weights of a run alone, where its own was lost: it resumes there with a new optimizer state."""
    tensors = {f"weight.{n}": t.contiguous() for n, t in weights.items()}
    save_file(tensors, path, {"progress": json.dumps({"step": progress.step, "seconds": progress.seconds})})
