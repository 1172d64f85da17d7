"""A decoder's convolutions in bfloat16 on the matrix unit of a CPU (AMX), with their weights packed once, norm and SiLU before, residual after.

Contract
    conv        causal_conv3d, or norm_silu_conv3d where there is a gamma, of one video that has a past: y, and the past written in place
    upsample    upsample_conv: each of the four pixels of y over one of x is a window of 2x2 pixels, whose taps are sums of W's
    x [1, CI, T, H, W] bfloat16, channels last in memory, W at least 16; sums in float32, one rounding, after the residual
Cost
    conv 2 * 3 k^2 CI CO flop a pixel and frame, upsample 8 CI CO. x, past, residual and y are moved once: what lies between norm and convolution
    stays in the second cache (docs/decisions/0010 has times).
Where
    csrc/cpu/conv.cc; on a CPU without AMX, where everface._native is not built and outside of inference mode oneDNN convolves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.cpu import LIBRARY, native_cpu, runs_native, takes_native

SIDE, DEPTH = 16, 32  # a tile: pixels or output channels, and input values


def packs(weight: Tensor) -> bool:
    """Whether a convolution of this weight can be packed."""
    return weight.dtype == torch.bfloat16 and takes_native(weight) and native_cpu().has_amx()


def group_of(weight: Tensor) -> int:
    """Pixels of a row that a [CO, CI, 3, k, k] is best applied to at once, by tiles that are multiplied: with few channels most of one would be zero.

    Their windows overlap: g of them hold k + g - 1 pixels, and the weight for all is k of those pixels for each.
    """
    c_out, c_in, _, _, space = weight.shape
    depth, columns = (lambda g: -(-(space + g - 1) * c_in // DEPTH)), (lambda g: -(-g * c_out // SIDE))
    return min((1, 2, 4), key=lambda g: depth(g) * columns(g) / g * (1.2 if columns(g) == 1 else 1))  # two columns share what is loaded


def pack_conv(weight: Tensor) -> Tensor:
    """The packed form of [CO, CI, 3, k, k]. `packs(weight)` must be true."""
    group, w = group_of(weight), weight.detach().permute(0, 2, 3, 4, 1)  # O T r k C
    one = [F.pad(w, (0, 0, n, group - 1 - n)) for n in range(group)]  # its window among the pixels of the group's
    return _pack(torch.cat(one)[None])


def pack_upsample(weight: Tensor) -> Tensor:
    """The packed form of [CO, CI, 3, 3], of four convolutions of 2x2."""
    folded = fold_upsample(weight.detach())
    return _pack(folded.permute(0, 1, 3, 4, 2)[:, :, None])


def fold_upsample(weight: Tensor) -> Tensor:
    """[CO, CI, 3, 3] over nearest neighbors -> [4, CO, CI, 2, 2] over their source, for upper left, upper right, lower left, lower right.

    Of three taps on an axis two meet the same pixel: 16 products instead of 36, in sums of another order.
    """
    taps = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [upper or lower pixel, tap on x, tap of W]
    return torch.einsum("prk,qsl,oikl->pqoirs", taps, taps, weight.float()).flatten(0, 1).to(weight.dtype)


def _pack(weight_POTrkC: Tensor) -> Tensor:
    """[phases, CO, taps, rows, columns, CI] -> tiles of 32 values of a window's row (those of its pixels side by side) and 16 channels."""
    w = weight_POTrkC.flatten(4)
    w = F.pad(w, (0, -w.shape[-1] % DEPTH))
    w = torch.cat([w, w.new_zeros(len(w), -w.shape[1] % SIDE, *w.shape[2:])], 1)
    w = w.unflatten(1, (-1, SIDE)).unflatten(-1, (-1, SIDE, 2))  # P O16 16 T r tiles 16 2
    return w.permute(0, 1, 3, 4, 5, 6, 2, 7).contiguous().flatten()


def takes(x_BCTHW: Tensor, past_BC2HW: Tensor | None, residual_BCTHW: Tensor | None, group: int = 1) -> bool:
    """Whether csrc/cpu takes these, for a layer that was packed."""
    given = [t for t in (x_BCTHW, past_BC2HW, residual_BCTHW) if t is not None]
    fits = all(t.dtype == torch.bfloat16 and len(t) == 1 and t.movedim(1, -1).is_contiguous() for t in given)
    width = x_BCTHW.shape[-1]
    return fits and width >= SIDE * group and width % group == 0 and runs_native(*given)


def _run(x: Tensor, gamma: Tensor | None, past: Tensor | None, residual: Tensor | None, packed: Tensor, bias: Tensor | None, sizes: list[int]) -> Tensor:
    """csrc/cpu/conv.cc. `sizes`: input channels, output channels, k, frames a pixel, size of y over that of x, pixels of a group. Returns y, channels last."""
    c_in, c_out, space, side, up, group = sizes
    _, frames, height, width, _ = x.shape
    y = x.new_empty((1, frames * side, height * up, width * up, c_out))
    gamma_C = None if gamma is None else gamma.flatten().float()
    addresses = [0 if t is None else t.data_ptr() for t in (x, gamma_C, past, packed, bias, residual, y)]
    native_cpu().convolve(*addresses, frames * side, height, width, c_in, c_out, 1 if past is None else 3, space, up, side, group, torch.get_num_threads())
    return y


LIBRARY.define(
    "packed_conv(Tensor x, Tensor? gamma, Tensor(a!)? past, Tensor? residual, Tensor packed, Tensor? bias, int[] sizes) -> Tensor"
)
LIBRARY.impl("packed_conv", _run, "CPU")


def flop(x: torch.Size, past: bool, sizes: list[int]) -> int:
    """Of one call, as a convolution's are counted: every product, those with padding too."""
    c_in, c_out, space, side, up, _ = sizes
    products = 3 * space**2 if past else 4
    return 2 * x.numel() // (side * c_in) * side * up**2 * products * c_in * c_out


def packed_conv(
    x_BCTHW: Tensor, gamma: Tensor | None, past_BC2HW: Tensor, packed: Tensor, bias: Tensor | None, residual_BCTHW: Tensor | None,
    weight: Tensor,
) -> Tensor:  # fmt: skip
    """y of `weight` [CO, CI, 3, k, k], of which only the shape is used; the past becomes the next one. `takes` must be true."""
    x, past, residual = (None if t is None else t.movedim(1, -1) for t in (x_BCTHW, past_BC2HW, residual_BCTHW))
    sizes = [weight.shape[1], weight.shape[0], weight.shape[3], 1, 1, group_of(weight)]
    return torch.ops.everface.packed_conv.default(x, gamma, past, residual, packed, bias, sizes).movedim(-1, 1)


def packed_upsample(x_BCTHW: Tensor, packed: Tensor, bias: Tensor | None, side: int, weight: Tensor) -> Tensor:
    """y of `weight` [CO, CI, 3, 3], of which only the shape is used. `takes` must be true."""
    sizes = [weight.shape[1], weight.shape[0], 3, side, 2, 1]
    return torch.ops.everface.packed_conv.default(x_BCTHW.movedim(1, -1), None, None, None, packed, bias, sizes).movedim(-1, 1)
