"""What every training run shares: Muon for matrices, AdamW for the rest, averaged weights, mixed precision, checkpoints.

Muon (Jordan et al. 2024) steps along the orthogonalised momentum; here convolution kernels count as matrices [out, rest], and
the step is scaled by 0.2 sqrt(max(out, rest)), so that one learning rate serves both halves (Moonlight, 2025).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5


def orthogonalise(g_NRC: Tensor) -> Tensor:
    """Nearest orthogonal matrices, roughly, by five Newton-Schulz steps in bfloat16. A batch of equal shapes at a time."""
    a, b, c = NS_COEFFICIENTS
    x = g_NRC.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.flatten(1).float().norm(dim=1).to(x)[:, None, None] + 1e-7)
    for _ in range(NS_STEPS):
        xx = x @ x.mT
        x = a * x + (b * xx + c * xx @ xx) @ x
    return (x if wide else x.mT).float()


class Optimiser:
    """Muon + AdamW over a module's parameters. Parameters without a gradient are left alone."""

    def __init__(self, module: nn.Module, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.95)) -> None:
        self.params = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.matrices = {n for n, p in self.params.items() if p.dim() >= 2 and min(p.shape[0], p[0].numel()) >= 8}
        self.momentum, self.betas, self.count = momentum, betas, 0
        self.state: dict[str, Tensor] = {}

    def zero_grad(self) -> None:
        for p in self.params.values():
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One descent step with this learning rate; AdamW's share gets half of it."""
        self.count += 1
        groups: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, p in self.params.items():
            if p.grad is None:
                continue
            g = p.grad.float()
            if name in self.matrices:
                m = self.state.setdefault(f"{name}.momentum", torch.zeros_like(g))
                m.lerp_(g, 1 - self.momentum)
                update = g.lerp(m, self.momentum).flatten(1)
                groups[(update.shape[0], update.shape[1])].append((p, update))
            else:
                self._adam(name, p, g, lr / 2)
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
    """Exponential average of a module's parameters; young averages forget faster."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.weights = {n: p.detach().clone().float() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for n, p in module.named_parameters():
            self.weights[n].lerp_(p.float(), 1 - decay)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """The module with the averaged weights, for the time of a `with`."""
        held = {n: p.detach().clone() for n, p in module.named_parameters()}
        with torch.no_grad():
            for n, p in module.named_parameters():
                p.copy_(self.weights[n])
            try:
                yield
            finally:
                for n, p in module.named_parameters():
                    p.copy_(held[n])


def autocast(device: str) -> torch.autocast:
    """bfloat16 where the machine multiplies it natively, else float32."""
    native = device != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device, torch.bfloat16, enabled=native)


@dataclass
class Progress:
    """How far a run has come, over all its sittings."""

    step: int = 0
    seconds: float = 0.0


def write_checkpoint(run_dir: Path, module: nn.Module, ema: Ema, optimiser: Optimiser, progress: Progress) -> None:
    """Everything needed to go on, in run_dir/checkpoint.safetensors, replaced at once."""
    tensors = {f"weight.{n}": p.detach() for n, p in module.named_parameters()}
    tensors |= {f"ema.{n}": t for n, t in ema.weights.items()} | {f"state.{n}": t for n, t in optimiser.state.items()}
    numbers = {"step": progress.step, "seconds": progress.seconds, "ema": ema.count, "optimiser": optimiser.count}
    partial = run_dir / "checkpoint.partial"
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial, {"progress": json.dumps(numbers)})
    os.replace(partial, run_dir / "checkpoint.safetensors")
    (run_dir / "progress.json").write_text(json.dumps(numbers) + "\n")


@torch.no_grad()
def read_checkpoint(run_dir: Path, module: nn.Module, ema: Ema, optimiser: Optimiser) -> Progress:
    """Restore what write_checkpoint kept; a fresh Progress when there is none."""
    path = run_dir / "checkpoint.safetensors"
    if not path.exists():
        return Progress()
    tensors, numbers = load_file(path), json.loads((run_dir / "progress.json").read_text())
    for n, p in module.named_parameters():
        p.copy_(tensors[f"weight.{n}"])
    ema.weights = {n.removeprefix("ema."): t for n, t in tensors.items() if n.startswith("ema.")}
    optimiser.state = {n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")}
    ema.count, optimiser.count = numbers["ema"], numbers["optimiser"]
    return Progress(numbers["step"], numbers["seconds"])
