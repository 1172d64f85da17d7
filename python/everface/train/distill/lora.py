"""LoRA in training: adapters on the layers that everface.weights.lora merges, with A and B under the same names.

    y = W x + b + alpha / rank * B (A x)        A [rank, in] starts random, B [out, rank] at zero; W and b are frozen
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from everface.networks.transformer.dit import DiT
from everface.networks.uninitialized import uninitialized
from everface.weights.lora import TARGET


class LoRALinear(nn.Linear):
    """A frozen Linear with an adapter. `enabled` False: the Linear alone, at no cost."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        with uninitialized():
            super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_A = nn.Linear(self.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False)
        self.scale, self.enabled = alpha / rank, True
        with torch.no_grad():
            self.lora_A.weight.copy_(torch.randn(rank, self.in_features, generator=generator) / self.in_features**0.5)
            self.lora_B.weight.zero_()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        y = F.linear(input, self.weight, self.bias)
        return y + self.scale * self.lora_B(self.lora_A(input)) if self.enabled else y


def add_adapters(dit: DiT, rank: int, alpha: float, seed: int) -> DiT:
    """Freeze the transformer and add an adapter to every target of the official LoRA, in place. Must come before sharding."""
    g = torch.Generator().manual_seed(seed)
    dit.requires_grad_(False)
    for name, module in list(dit.named_modules()):
        if isinstance(module, nn.Linear) and TARGET.fullmatch(f"{name}.weight"):
            parent, _, leaf = name.rpartition(".")
            setattr(dit.get_submodule(parent), leaf, LoRALinear(module, rank, alpha, g).to(module.weight.device))
    return dit


@contextmanager
def without_adapters(dit: DiT) -> Iterator[None]:
    """The frozen model alone inside a `with`: one set of weights serves the real and the fake score."""
    adapters = [m for m in dit.modules() if isinstance(m, LoRALinear)]
    for m in adapters:
        m.enabled = False
    try:
        yield
    finally:
        for m in adapters:
            m.enabled = True
