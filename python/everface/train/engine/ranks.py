"""One training run over several processes: which rank takes which micro-batch, and how gradients and numbers are summed.

Under torchrun every process is a rank; without it the run is a single process. A batch of micro-batches is the same for any number of
ranks: rank r takes micro-batches r, r + world, ..., each seeded by its own number, and the sum of all gradients is that of a single
process, up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from everface.core.errors import BadInput


@dataclass(frozen=True)
class Ranks:
    """This process among all. `device` is where it computes."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def share(self, micro_batches: int) -> range:
        """This rank's micro-batches. Raises BadInput where they do not divide: all ranks must make the same number of calls."""
        if micro_batches % self.world:
            raise BadInput(f"micro_batches={micro_batches} does not divide among {self.world} ranks: set a multiple of their number")
        return range(self.rank, micro_batches, self.world)

    def sum_gradients(self, module: nn.Module) -> None:
        """Sum the gradients over the ranks. FSDP2 has reduced its own already, as a mean; `loss_factor` makes up for that."""
        if self.world == 1:
            return
        grads = [p.grad for p in module.parameters() if p.grad is not None and not isinstance(p, DTensor)]
        if not grads:
            return
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

    def loss_factor(self, sharded: bool) -> int:
        """Factor on a rank's loss with which gradients come out as sums over the ranks."""
        return self.world if sharded else 1

    def sum(self, *values: float) -> list[float]:
        """Sums over the ranks. All ranks must call."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def from_rank_0(self, value: float) -> float:
        """Rank 0's value on every rank, such as its clock."""
        return self.sum(value if self.rank == 0 else 0.0)[0]

    def agree(self, value: float) -> bool:
        """Whether all ranks have the same value. All ranks must call."""
        if self.world == 1:
            return True
        ends = torch.tensor([value, -value], dtype=torch.float64, device=self.device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        most, least = ends[0], -ends[1]
        return bool(most == least)

    def barrier(self) -> None:
        self.sum(0.0)


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """The ranks of torchrun, or a single process. On CUDA each rank takes the device of its local number."""
    if not dist.is_torchelastic_launched() and not dist.is_initialized():
        yield Ranks(device=device)
        return
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device == "cuda":
        torch.cuda.set_device(dist.distributed_c10d.get_node_local_rank())
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if mine:
            dist.destroy_process_group()
