"""The ops between two GEMMs with their gradients on a CPU, for training in bfloat16: one pass each way where plain torch takes five to ten.

Contract
    modulate   LayerNorm(x) * (1 + scale) + shift, x float32 -> bfloat16                  as gate_norm_modulate with norm_dtype float32
    add_gated  x + gate * y, x float32, y bfloat16 -> float32                             as gate_residual
    normalize  RMS norm of queries or keys times weight, bfloat16, weight float32         as norm_rope.rms_norm of a rounded weight
    turn       rotation of queries or keys, bfloat16                                      as norm_rope.rotate
    x, y [..., tokens, D]; gate, shift, scale float32 [..., 1, D], which broadcast; table_TP2 float32
    Statistics, sums and gradients of weights, gates, shifts and scales in float32; inference rounds at the same places.
Cost
    memory: one read of each input and one write of each output, each way.
Where
    csrc/cpu/rows.cc and rows_gradient.cc, under autocast to bfloat16; elsewhere `trains_native` is False and the ops run their reference.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from everface.kernels.cpu import native_cpu, operand, takes_native

F32, BF16 = torch.float32, torch.bfloat16
TOKENS_OF_GROUP = 64  # rows whose gradient of a norm's weight one thread sums


def trains_native(*tensors: Tensor) -> bool:
    """Whether these are trained in bfloat16 on a CPU, and everface._native is built."""
    if torch.is_inference_mode_enabled() or not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != BF16:
        return False
    return takes_native(*tensors)


def framewise(m: Tensor, x: Tensor) -> Tensor:
    """Modulation as float32 [frames, D] without gaps; differentiable."""
    return m.float().expand(*x.shape[:-2], 1, x.shape[-1]).reshape(-1, x.shape[-1]).contiguous()


def norm_gradient(
    x: Tensor, grad_u: Tensor, factor_GD: Tensor, eps: float, group_rows: int, *, shifted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the factor and, if `shifted`, of the shift, of the last two [groups, D]. With a shift the norm subtracts the mean."""
    width = x.shape[-1]
    groups = x.numel() // width // group_rows
    grad_x, grad_factor = torch.empty_like(x), torch.empty(groups, width)
    grad_shift = torch.empty(groups, width) if shifted else None
    native_cpu().norm_backward(
        operand(x, width), operand(grad_u, width), operand(grad_x, width), factor_GD.data_ptr(), width if len(factor_GD) > 1 else 0,
        grad_factor.data_ptr(), 0 if grad_shift is None else grad_shift.data_ptr(), shifted, eps, groups, group_rows, width, torch.get_num_threads(),
    )  # fmt: skip
    return grad_x, grad_factor, grad_shift


class Modulate(torch.autograd.Function):
    """Keeps its inputs; the backward pass computes the statistics again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift_GD: Tensor, scale_GD: Tensor, eps: float) -> Tensor:
        width, rows = x.shape[-1], x.shape[-2]
        u = torch.empty_like(x, dtype=BF16)
        native_cpu().gate_norm_modulate(
            operand(x, width), None, None, None, None, operand(shift_GD, width), operand(scale_GD, width), None, operand(u, width), False, eps,
            x.numel() // width, rows, width, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, scale_GD)
        ctx.eps = eps
        return u

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor | None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator has positions only
        x, scale_GD = ctx.saved_tensors
        grad_x, grad_scale, grad_shift = norm_gradient(x, grad_outputs[0].contiguous(), 1 + scale_GD, ctx.eps, x.shape[-2], shifted=True)
        return grad_x, grad_shift, grad_scale, None


class Normalize(torch.autograd.Function):
    """The same of an RMS norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        u, weight = torch.empty_like(x), weight_D.to(x.dtype)
        native_cpu().norm_rope(operand(x, width), operand(u, width), weight.data_ptr(), 0, eps, x.numel() // width, 1, 0, width, 1, torch.get_num_threads())
        ctx.save_for_backward(x, weight_D)
        ctx.eps = eps
        return u

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator has positions only
        x, weight_D = ctx.saved_tensors
        rows = x.numel() // x.shape[-1]
        group = TOKENS_OF_GROUP if rows % TOKENS_OF_GROUP == 0 else 1
        grad_x, grad_weight, _ = norm_gradient(x, grad_outputs[0].contiguous(), weight_D[None], ctx.eps, group, shifted=False)
        return grad_x, grad_weight.sum(0), None


class Turn(torch.autograd.Function):
    """A rotation's gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x_BTHd: Tensor, table_TP2: Tensor) -> Tensor:
        ctx.save_for_backward(table_TP2)
        return run_turn(x_BTHd, table_TP2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator has positions only
        (table_TP2,) = ctx.saved_tensors
        back = table_TP2 * torch.tensor([1.0, -1.0])
        return run_turn(grad_outputs[0].contiguous(), back), None


def run_turn(x_BTHd: Tensor, table_TP2: Tensor) -> Tensor:
    tokens, heads, d = x_BTHd.shape[-3:]
    width, out = heads * d, torch.empty_like(x_BTHd)
    native_cpu().norm_rope(
        operand(x_BTHd, width), operand(out, width), 0, table_TP2.data_ptr(), 0.0, x_BTHd.numel() // width, tokens, 0, width, heads,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


class AddGated(torch.autograd.Function):
    """Keeps y and the gate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate_GD: Tensor) -> Tensor:
        width, out = x.shape[-1], torch.empty_like(x)
        native_cpu().gate_norm_modulate(
            operand(x, width), operand(y, width), operand(gate_GD, width), None, None, None, None, operand(out, width), None, False, 0.0,
            x.numel() // width, x.shape[-2], width, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(y, gate_GD)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator has positions only
        y, gate_GD = ctx.saved_tensors
        grad, width = grad_outputs[0].contiguous(), y.shape[-1]
        grad_y, grad_gate = torch.empty_like(y), torch.empty_like(gate_GD)
        native_cpu().gate_backward(
            operand(y, width), operand(grad, width), operand(grad_y, width), gate_GD.data_ptr(), width, grad_gate.data_ptr(), len(gate_GD),
            y.shape[-2], width, torch.get_num_threads(),
        )  # fmt: skip
        return grad, grad_y, grad_gate


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """u of x; where `trains_native`."""
    return cast(Tensor, Modulate.apply(x.contiguous(), framewise(shift, x), framewise(scale, x), eps))


def add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return cast(Tensor, AddGated.apply(x.contiguous(), y.contiguous(), framewise(gate, x)))


def normalize(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return cast(Tensor, Normalize.apply(x.contiguous(), weight_D, eps))


def turn(x_BTHd: Tensor, table_TP2: Tensor) -> Tensor:
    return cast(Tensor, Turn.apply(x_BTHd.contiguous(), table_TP2.contiguous()))
