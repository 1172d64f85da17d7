"""FSDP2: parameters of the transformer sharded over the ranks, and tensors that may or may not be sharded.

Sharded, parameters are DTensors, and all of their optimizer state is a local tensor. A unit is gathered when one of its listed methods is
called, in bfloat16 on a GPU and float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import wraps

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from everface.core.errors import BadInput
from everface.networks.transformer.dit import DiT
from everface.train.engine.ranks import Ranks

# Methods of a unit that are called from outside of it, besides its forward.
ROOT = (
    "time", "embed_text", "text_kv", "embed_patches", "prefill", "prefill_sink", "inject", "modulations", "stream_text_kv", "audio_kv", "tokens",
    "step",
)  # fmt: skip
BLOCK = ("modulations", "stream")
ATTENTION = ("keys_values", "single", "text_kv", "stream")


def shard_model(dit: DiT, ranks: Ranks, group: int) -> DiT:
    """Shard the parameters, in place: over all ranks, or over groups of `group` ranks, where the groups hold copies of each other."""
    group = min(group, ranks.world)
    if ranks.world % group:
        raise BadInput(f"{ranks.world} ranks do not split into groups of {group}: change shard_group")
    whole = group == ranks.world
    shape, names = ((ranks.world,), ("shard",)) if whole else ((ranks.world // group, group), ("copy", "shard"))
    kind = torch.device(ranks.device).type
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy(param_dtype=None if kind == "cpu" else torch.bfloat16, reduce_dtype=torch.float32)

    def unit(module: nn.Module, methods: Iterable[str]) -> None:
        fully_shard(module, mesh=mesh, mp_policy=policy)
        for name in methods:
            gather_in(module, name)

    for block in dit.transformer_blocks():
        unit(block.cross_attn, ATTENTION)
        unit(block, BLOCK)
    for injector in dit.audio_injector.injector:
        unit(injector, ATTENTION)
    unit(dit.casual_audio_encoder, ("encode_block", "encode_blocks"))
    unit(dit, ROOT)
    return dit


def gather_in(module: nn.Module, name: str) -> None:
    """Let a method gather its unit and release it again, as `forward` does. Called while the unit is gathered, it leaves it so."""
    plain, first = getattr(module, name), next(iter(dict(module.named_parameters())))
    register_fsdp_forward_method(module, name)
    gathering = getattr(module, name)

    @wraps(plain)
    def call(*args: object, **kwargs: object) -> object:
        sharded = isinstance(module.get_parameter(first), DTensor)
        return (gathering if sharded else plain)(*args, **kwargs)

    object.__setattr__(module, name, call)


def gather_before_gradients(module: nn.Module, outputs: Iterable[torch.Tensor]) -> None:
    """Gather the unit again when a gradient comes back to one of `outputs`.

    FSDP2 does so for what `forward` returned. For tensors that left the unit by another method, such as the sink's keys and values, it
    must be asked to, or the backward pass reads weights after their memory was freed.
    """
    if isinstance(module, FSDPModule):
        for tensor in outputs:
            if tensor.requires_grad:
                tensor.register_hook(lambda _: module.unshard())


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_full(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The full tensor of which this rank holds a part, sharded as `like` is. All ranks must call."""
    if not isinstance(like, DTensor):
        return tensor
    return DTensor.from_local(tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def clip_gradients(module: nn.Module, max_norm: float) -> float:
    """Scale the gradients to a norm of at most `max_norm`; returns the norm before, the same on every rank."""
    norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], max_norm)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
