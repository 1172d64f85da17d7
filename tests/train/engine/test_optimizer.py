"""Optimizer, averaged weights and checkpoint of a small network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from everface.train.engine.checkpoint import Progress, TrainedModel, read_checkpoint, write_checkpoint
from everface.train.engine.ema import Ema
from everface.train.engine.optimizer import Optimizer, orthogonalize


def test_orthogonalize_makes_singular_values_even() -> None:
    g = torch.Generator().manual_seed(0)
    for rows, cols in ((16, 48), (48, 16), (32, 32)):
        x = torch.randn(3, rows, cols, generator=g) * torch.logspace(0, -1, cols)
        values = torch.linalg.svdvals(orthogonalize(x))
        assert values.max() < 1.35 and values.median() > 0.6
        assert torch.linalg.svdvals(x).max() / torch.linalg.svdvals(x).min() > values.max() / values.min()


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 12))
    x = torch.randn(64, 12)
    return net, x, torch.tanh(x.flip(1)) + x.roll(3, 1)


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, optimizer: Optimizer, ema: Ema, steps: int) -> float:
    loss = torch.tensor(torch.inf)
    for _ in range(steps):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(2e-2)
        ema.update(net)
    return loss.item()


def test_training_and_a_checkpoint_that_resumes_bit_for_bit(tmp_path: Path) -> None:
    (net, x, y), path = problem(), tmp_path / "checkpoint.safetensors"
    optimizer, ema = Optimizer(net), Ema(net, 0.9)
    first = train(net, x, y, optimizer, ema, 1)
    train(net, x, y, optimizer, ema, 39)
    write_checkpoint(path, {"": TrainedModel(net, optimizer, ema)}, Progress(40, 12.5))
    last = train(net, x, y, optimizer, ema, 10)
    assert last < 0.2 * first

    other, _, _ = problem()
    optimizer_2, ema_2 = Optimizer(other), Ema(other, 0.9)
    assert read_checkpoint(path, {"": TrainedModel(other, optimizer_2, ema_2)}) == Progress(40, 12.5)
    assert train(other, x, y, optimizer_2, ema_2, 10) == last
    for n, p in net.named_parameters():
        assert torch.equal(p, other.get_parameter(n)) and torch.equal(ema.weights[n], ema_2.weights[n])


def test_swapped_weights_come_back() -> None:
    net, x, y = problem()
    ema = Ema(net, 0.9)
    train(net, x, y, Optimizer(net), ema, 5)
    own = net(x)
    with ema.swapped(net):
        assert not torch.equal(net(x), own)
    assert torch.equal(net(x), own)
