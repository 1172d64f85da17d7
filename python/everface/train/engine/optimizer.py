"""What every training run shares: Muon for matrices, AdamW for the rest, averaged weights, mixed precision, checkpoints.

Muon (Jordan et al. 2024) steps along the orthogonalised momentum; here convolution kernels count as matrices [out, rest], and
the step is scaled by 0.2 sqrt(max(out, rest)), so that one learning rate serves both halves (Moonlight, 2025).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from everface.train.engine.ranks import local

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5


def orthogonalise(g_NRC: Tensor) -> Tensor:
    """Nearest orthogonal matrices, roughly, by five Newton-Schulz steps. A batch of equal shapes at a time.

    In bfloat16 where the machine multiplies it natively: elsewhere it is emulated, and twice the time of the model's backward pass.
    """
    a, b, c = NS_COEFFICIENTS
    x = g_NRC.bfloat16() if multiplies_bfloat16(g_NRC.device.type) else g_NRC.float()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.flatten(1).float().norm(dim=1).to(x)[:, None, None] + 1e-7)
    for _ in range(NS_STEPS):
        xx = x @ x.mT
        x = a * x + (b * xx + c * xx @ xx) @ x
    return (x if wide else x.mT).float()


class Optimiser:
    """Muon + AdamW over a module's parameters, or, without `muon`, AdamW alone. Parameters without a gradient are left alone.

    AdamW goes element by element, so parameters may be sharded (spread.py); a matrix that Muon steps along must be whole.
    """

    def __init__(
        self, module: nn.Module, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.95), muon: bool = True
    ) -> None:
        self.params = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.muon = muon
        large = {n for n, p in self.params.items() if p.dim() >= 2 and min(p.shape[0], p[0].numel()) >= 8} if muon else set()
        self.matrices: set[str] = large
        self.momentum, self.betas, self.count = momentum, betas, 0
        self.state: dict[str, Tensor] = {}

    def zero_grad(self) -> None:
        for p in self.params.values():
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One descent step with this learning rate; beside Muon, AdamW's share gets half of it."""
        self.count += 1
        groups: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, p in self.params.items():
            if p.grad is None:
                continue
            g, p = local(p.grad).float(), local(p)
            if name in self.matrices:
                m = self.state.setdefault(f"{name}.momentum", torch.zeros_like(g))
                m.lerp_(g, 1 - self.momentum)
                update = g.lerp(m, self.momentum).flatten(1)
                groups[(update.shape[0], update.shape[1])].append((p, update))
            else:
                self._adam(name, p, g, lr / 2 if self.muon else lr)
        for (rows, cols), members in groups.items():
            steps = orthogonalise(torch.stack([u for _, u in members]))
            for (p, _), u in zip(members, steps):
                p.add_(u.view(p.shape), alpha=-lr * 0.2 * max(rows, cols) ** 0.5)

    def _adam(self, name: str, p: Tensor, g: Tensor, lr: float) -> None:
        b1, b2 = self.betas
        m = self.state.setdefault(f"{name}.first", torch.zeros_like(g))
        v = self.state.setdefault(f"{name}.second", torch.zeros_like(g))
        m.lerp_(g, 1 - b1)
        v.lerp_(g * g, 1 - b2)
        p.addcdiv_(m / (1 - b1**self.count), (v / (1 - b2**self.count)).sqrt() + 1e-8, value=-lr)


class Ema:
    """Exponential average of a module's parameters, or of those that are `trained` alone; young averages forget faster.

    Of sharded parameters every rank averages its own part.
    """

    def __init__(self, module: nn.Module, decay: float, trained: bool = False) -> None:
        self.decay, self.count = decay, 0
        named = ((n, p) for n, p in module.named_parameters() if p.requires_grad or not trained)
        self.weights = {n: local(p).detach().clone().float() for n, p in named}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for n, p in self._parameters(module):
            self.weights[n].lerp_(p.float(), 1 - decay)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """The module with the averaged weights, for the time of a `with`."""
        held = {n: p.detach().clone() for n, p in self._parameters(module)}
        with torch.no_grad():
            for n, p in self._parameters(module):
                p.copy_(self.weights[n])
            try:
                yield
            finally:
                for n, p in self._parameters(module):
                    p.copy_(held[n])

    def _parameters(self, module: nn.Module) -> list[tuple[str, Tensor]]:
        return [(n, local(p)) for n, p in module.named_parameters() if n in self.weights]


def multiplies_bfloat16(device: str) -> bool:
    """Whether the machine multiplies bfloat16 natively."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported()


def autocast(device: str) -> torch.autocast:
    """bfloat16 where the machine multiplies it natively, else float32."""
    return torch.autocast(device, torch.bfloat16, enabled=multiplies_bfloat16(device))


@dataclass
class Progress:
    """How far a run has come, over all its sittings."""

    step: int = 0
    seconds: float = 0.0


class Part(NamedTuple):
    """One model under training. Of its parameters those that are trained go into a checkpoint, of sharded ones this rank's share."""

    module: nn.Module
    optimiser: Optimiser
    ema: Ema | None = None


def write_state(path: Path, parts: Mapping[str, Part], progress: Progress) -> None:
    """Everything needed to go on, in one file that is replaced at once; keys of a part begin with its name."""
    tensors, numbers = {}, {"step": progress.step, "seconds": progress.seconds}
    for name, (module, optimiser, ema) in parts.items():
        tensors |= {f"{name}weight.{n}": local(p).detach() for n, p in module.named_parameters() if p.requires_grad}
        tensors |= {f"{name}state.{n}": t for n, t in optimiser.state.items()}
        numbers[f"{name}optimiser"] = optimiser.count
        if ema is not None:
            tensors |= {f"{name}ema.{n}": t for n, t in ema.weights.items()}
            numbers[f"{name}ema"] = ema.count
    partial = path.with_suffix(".partial")
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial, {"progress": json.dumps(numbers)})
    os.replace(partial, path)


@torch.no_grad()
def read_state(path: Path, parts: Mapping[str, Part]) -> Progress:
    """Restore what write_state kept; a fresh Progress when there is none."""
    if not path.exists():
        return Progress()
    with safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["progress"])
        keys = list(file.keys())
        for name, (module, optimiser, ema) in parts.items():
            device = next(module.parameters()).device
            for n, p in module.named_parameters():
                if p.requires_grad:
                    local(p).copy_(file.get_tensor(f"{name}weight.{n}"))
            kept = {k.removeprefix(f"{name}state."): file.get_tensor(k).to(device) for k in keys if k.startswith(f"{name}state.")}
            optimiser.state, optimiser.count = kept, numbers[f"{name}optimiser"]
            if ema is not None:
                ema.weights = {n: file.get_tensor(f"{name}ema.{n}").to(device) for n in ema.weights}
                ema.count = numbers[f"{name}ema"]
    return Progress(numbers["step"], numbers["seconds"])


def write_checkpoint(run_dir: Path, module: nn.Module, ema: Ema, optimiser: Optimiser, progress: Progress) -> None:
    """The state of a run with one model, in run_dir/checkpoint.safetensors, and how far it is in run_dir/progress.json."""
    write_state(run_dir / "checkpoint.safetensors", {"": Part(module, optimiser, ema)}, progress)
    (run_dir / "progress.json").write_text(json.dumps({"step": progress.step, "seconds": progress.seconds}) + "\n")


def read_checkpoint(run_dir: Path, module: nn.Module, ema: Ema, optimiser: Optimiser) -> Progress:
    """Restore what write_checkpoint kept; a fresh Progress when there is none."""
    return read_state(run_dir / "checkpoint.safetensors", {"": Part(module, optimiser, ema)})
