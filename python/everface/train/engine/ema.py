"""Averaged weights (EMA), which are what a run leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from everface.train.engine.sharding import local


class Ema:
    """Exponential moving average of a module's parameters, in float32; with `trained`, only of those that need gradients.

    The decay starts low and rises to `decay`, so that early weights are forgotten quickly. Of sharded parameters every rank averages
    its own part.
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
        """The module with the averaged weights inside a `with`; its own weights come back afterwards."""
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
