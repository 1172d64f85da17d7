"""Linear layers of a streaming forward: plain ones, several fused into one, ours in 8 bits, and packed for a CPU; and the norms before them.

A norm returns the input that its next layer takes: activations, or e4m3 values, which the norm's kernel quantizes in its epilogue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from everface.kernels.fused.gate_norm_modulate import Pair, gate_norm_modulate, gate_norm_modulate_fp8, gate_residual
from everface.kernels.fused.row_primitives import E4M3_MAX, MIN_AMAX
from everface.kernels.linear.fp8_linear import fp8_linear_rows
from everface.kernels.linear.packed_linear import pack_weight, packed_linear, packs
from everface.kernels.linear.quantize_rows import quantize_rows
from everface.networks.uninitialized import uninitialized


class Quantized(NamedTuple):
    """An activation in e4m3 [..., K] with one scale a token [..., 1] float32."""

    values: torch.Tensor
    scale: torch.Tensor


Activation = torch.Tensor | Quantized


class Residual(NamedTuple):
    """A residual stream with a pending addition, x + gate * y (gate None: 1), which the next norm fuses."""

    x: torch.Tensor
    y: torch.Tensor | None = None
    gate: torch.Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The model's, which the stream has between blocks. Inside a block x is float32 and y has the model's dtype."""
        return self.x.dtype if self.y is None else self.y.dtype

    def value(self) -> torch.Tensor:
        """The stream with the pending addition done and rounded, as the next norm would see it."""
        return self.x if self.y is None else gate_residual(self.x, self.y, self.gate, self.dtype)


class RowLinear(nn.Module):
    """A Linear in 8 bits: e4m3 weight [out, in], one float32 scale an output channel, activations quantized with one scale a token.

    Not for training; `.to(dtype)` would widen the weight. The result is in `dtype`, that of the layer it was made from.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    gelu_in_epilogue = False  # of the FFN: in the epilogue of its first GEMM, or, by default, in the pass that quantizes for its second

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        quantized_OI, scale_O1 = quantize_rows(layer.weight.detach())
        self.register_buffer("weight", quantized_OI)
        self.register_buffer("scale", scale_O1.flatten())
        self.bias, self.dtype = layer.bias, layer.weight.dtype

    def forward(self, x: Activation, gelu: bool = False) -> torch.Tensor:
        """[..., in] -> [..., out]; with gelu its tanh form follows."""
        quantized, scale = x if isinstance(x, Quantized) else quantize_rows(x)
        return fp8_linear_rows(quantized, scale, self.weight, self.scale, self.bias, gelu=gelu, dtype=self.dtype)


class PackedLinear(nn.Module):
    """A Linear in bfloat16 with its weight packed for a CPU's matrix unit. Not for training; `.to` leaves nothing that runs."""

    packed: torch.Tensor
    bias: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("packed", pack_weight(layer.weight))
        self.register_buffer("bias", layer.bias.detach())

    def forward(self, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """[..., in] -> [..., out]; with gelu its tanh form follows."""
        return packed_linear(x, self.packed, self.bias, gelu)


def pack_linears(part: nn.Module, names: Iterable[str]) -> None:
    """Pack those Linears of a module that this machine has a matrix unit for. Results stay the same up to the order of sums."""
    for name in names:
        parent, _, last = name.rpartition(".")
        layer = part.get_submodule(name)
        if type(layer) is nn.Linear and packs(layer.weight):
            setattr(part.get_submodule(parent), last, PackedLinear(layer))


class HostLinear(nn.Module):
    """A Linear with its weights in host memory, copied to the device of the input for every call. For layers that run once a prompt.

    The weights are not parameters, so that moving the model leaves them where they are.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        on_gpu, held = layer.weight.is_cuda, (layer.weight.detach().cpu(), layer.bias.detach().cpu())
        self.held = tuple(t.pin_memory() for t in held) if on_gpu else held  # pinned: copied at the full rate of the bus

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        weight_OI, bias_O = (t.to(x.device, non_blocking=True) for t in self.held)
        return F.linear(x, weight_OI, bias_O)


def e4m3_scale(x: torch.Tensor) -> torch.Tensor:
    """The scale [1] float32 with which e4m3 holds every element of x, and every mean of elements."""
    return x.abs().amax().float().clamp(min=MIN_AMAX).reshape(1) / E4M3_MAX


Layer = nn.Linear | RowLinear | PackedLinear


def norm_for(
    layer: nn.Module, r: Residual, *, affine: Pair | None = None, modulation: Pair | None = None, eps: float,
    norm_dtype: torch.dtype, residual_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, Activation]:  # fmt: skip
    """(the stream with its addition done, its norm as input of `layer`): `gate_norm_modulate`, quantized if `layer` is in 8 bits."""
    given = {"affine": affine, "modulation": modulation, "eps": eps, "norm_dtype": norm_dtype, "residual_dtype": residual_dtype}
    if isinstance(layer, RowLinear):
        x, quantized = gate_norm_modulate_fp8(*r, **given, dtype=layer.dtype)
        return x, Quantized(*quantized)
    return gate_norm_modulate(*r, **given, dtype=r.dtype)


def stack_linears(*layers: nn.Linear) -> nn.Linear:
    """One Linear that outputs the concatenation of theirs. For inference; equal up to the order of sums."""
    first = layers[0]
    with uninitialized():
        one = nn.Linear(first.in_features, sum(layer.out_features for layer in layers))
    one.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
    one.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)
    return one


def linear_f32(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """A layer of any dtype applied in float32, under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())
