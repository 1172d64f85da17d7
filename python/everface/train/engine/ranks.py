"""One training run over several processes: who takes which share of a batch, how gradients meet, what each rank keeps.

Under torchrun every process is a rank; without it the run is alone. A batch of `micros` members is the same whatever the number of
ranks: rank r takes members r, r + world, ..., each seeded by its own number, and the sum of all gradients is what one process would
have found, up to the order of the sum. Sharded, parameters are DTensors of FSDP2 (and every state of theirs a local tensor): a unit is
gathered in bfloat16 on a GPU, float32 on the CPU, when one of its methods is called, be it not `forward`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from everface.core.errors import BadInput
from everface.model.dit import DiT

# What is called of a unit from outside of it, besides its forward.
ROOT = (
    "time", "embed_text", "text_kv", "embed_patches", "prefill", "prefill_sink", "inject", "modulations", "reading", "hear", "tokens",
    "step",
)  # fmt: skip
BLOCK = ("modulations", "stream")
ATTENTION = ("keys_values", "single", "reading", "stream")


@dataclass(frozen=True)
class Ranks:
    """This process among all. `device` is where it computes."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def share(self, micros: int) -> range:
        """The members of a batch that are this rank's. Raises BadInput where they do not divide: ranks must go in step."""
        if micros % self.world:
            raise BadInput(f"{micros} micros do not divide among {self.world} ranks: set micros to a multiple")
        return range(self.rank, micros, self.world)

    def shard(self, dit: DiT, over: int) -> DiT:
        """Spread the parameters, in place: over all ranks, or over groups of `over` that hold copies of each other."""
        over = min(over, self.world)
        if self.world % over:
            raise BadInput(f"{self.world} ranks do not split into groups of {over}: mend shard_over")
        shape, names = ((self.world,), ("shard",)) if over == self.world else ((self.world // over, over), ("copy", "shard"))
        kind = torch.device(self.device).type
        mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
        policy = MixedPrecisionPolicy(param_dtype=None if kind == "cpu" else torch.bfloat16, reduce_dtype=torch.float32)

        def unit(module: nn.Module, methods: Iterable[str]) -> None:
            fully_shard(module, mesh=mesh, mp_policy=policy)
            for name in methods:
                open_by(module, name)

        for block in dit._blocks():
            unit(block.cross_attn, ATTENTION)
            unit(block, BLOCK)
        for injector in dit.audio_injector.injector:
            unit(injector, ATTENTION)
        unit(dit.casual_audio_encoder, ("encode_block", "encode_blocks"))
        unit(dit, ROOT)
        return dit

    def reduce(self, module: nn.Module) -> None:
        """Sum the gradients over the ranks. FSDP2 has done so already, but as a mean: its loss comes `factor` times as large."""
        if self.world == 1:
            return
        grads = [p.grad for p in module.parameters() if p.grad is not None and not isinstance(p, DTensor)]
        if not grads:
            return
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

    def factor(self, sharded: bool) -> int:
        """What a rank's loss is multiplied by, so that gradients come out as sums over the ranks."""
        return self.world if sharded else 1

    def total(self, *values: float) -> list[float]:
        """Sums over the ranks."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def agree(self, value: float) -> float:
        """Rank 0's value, everywhere: the clock, above all."""
        return self.total(value if self.rank == 0 else 0.0)[0]


def open_by(module: nn.Module, name: str) -> None:
    """Let a method gather its unit and give it back, as `forward` does; called from within an open unit it leaves it open."""
    plain, first = getattr(module, name), next(iter(dict(module.named_parameters())))
    register_fsdp_forward_method(module, name)
    gathering = getattr(module, name)

    @wraps(plain)
    def call(*args: object, **kwargs: object) -> object:
        shut = isinstance(module.get_parameter(first), DTensor)
        return (gathering if shut else plain)(*args, **kwargs)

    object.__setattr__(module, name, call)


def gather_before_gradients(module: nn.Module, made: Iterable[torch.Tensor]) -> None:
    """FSDP2 gathers a unit again when a gradient comes back to what its forward returned. What left it by another way, as the keys and
    values of the sink do, must say so itself: the weights' memory would be gone."""
    if isinstance(module, FSDPModule):
        for tensor in made:
            if tensor.requires_grad:
                tensor.register_hook(lambda _: module.unshard())


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """The ranks of torchrun, or alone. On CUDA each rank takes the device of its place on its machine."""
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


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The full tensor whose part this rank holds, spread as `like` is. All ranks must ask together."""
    if not isinstance(like, DTensor):
        return tensor
    return DTensor.from_local(tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def clip_gradients(module: nn.Module, most: float) -> float:
    """Scale the gradients to a norm of at most `most`; returns the norm before. The same on every rank."""
    norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], most)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


