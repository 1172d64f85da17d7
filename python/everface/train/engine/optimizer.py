"""The optimizer of every run: Muon for matrices, AdamW for the rest.

Muon (Jordan et al. 2024) steps along the orthogonalized momentum. Here convolution kernels count as matrices [out, rest], and the step
is scaled by 0.2 sqrt(max(out, rest)), so that one learning rate serves both halves (Moonlight, 2025).
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from everface.train.engine.precision import multiplies_bfloat16
from everface.train.engine.sharding import local

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(g_NRC: Tensor) -> Tensor:
    """Nearest orthogonal matrices, roughly, by five Newton-Schulz steps. Takes a batch of matrices of one shape, returns float32.

    In bfloat16 where it is native: emulated it takes twice the time of the model's backward pass.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = g_NRC.bfloat16() if multiplies_bfloat16(g_NRC.device.type) else g_NRC.float()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.flatten(1).float().norm(dim=1).to(x)[:, None, None] + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        xx = x @ x.mT
        x = a * x + (b * xx + c * xx @ xx) @ x
    return (x if wide else x.mT).float()


class Optimizer:
    """Muon + AdamW over a module's parameters, or, with `muon` False, AdamW alone. Parameters without a gradient are left alone.

    AdamW works element by element, so its parameters may be sharded; a matrix that Muon updates must be whole.
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
        """One update with this learning rate; beside Muon, AdamW's parameters get half of it."""
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
            steps = orthogonalize(torch.stack([u for _, u in members]))
            for (p, _), u in zip(members, steps):
                p.add_(u.view(p.shape), alpha=-lr * 0.2 * max(rows, cols) ** 0.5)

    def _adam(self, name: str, p: Tensor, g: Tensor, lr: float) -> None:
        b1, b2 = self.betas
        m = self.state.setdefault(f"{name}.first", torch.zeros_like(g))
        v = self.state.setdefault(f"{name}.second", torch.zeros_like(g))
        m.lerp_(g, 1 - b1)
        v.lerp_(g * g, 1 - b2)
        p.addcdiv_(m / (1 - b1**self.count), (v / (1 - b2**self.count)).sqrt() + 1e-8, value=-lr)
