"""Linear layer in 8-bit floats, as the official `--fp8`: one scale a tensor, weight fixed, activation measured at every call.

Contract
    quantise_tensor:  s = min(448 / max(amax|x|, 1e-12), 448);   codes = e4m3(clamp(x s, -448, 448)), nearest even;   scale = 1 / s
    fp8_linear:       y = (codes_x codes_w^T) scale_x scale_w + bias
    x [..., K] bfloat16 (or float32, float16), codes_w [N, K] float8_e4m3fn, scales [1] float32, bias [N] -> y [..., N] in x's dtype
    The product x s is rounded to x's dtype before it is coded: from bfloat16 that is the official eager rounding; a float32 x keeps
    it, as a fusing compiler does (2 to 4 % of the codes differ, by one).
    The cap s <= 448 means that a tensor with amax < 1, as nearly every weight is, always has s = 448.
Cost
    2 M N K flops on the 8-bit tensor cores, N K bytes of weight; the activation is read twice more (amax, then codes).
    At M = 3168 (a block) the product bounds it; 15.9 G weights take 15.9 GB instead of 31.9.
Backends
    CUDA with 8-bit tensor cores (compute capability 8.9 and up), K and N multiples of 16: torch._scaled_mm with fast accumulation,
    as officially. Everything else: the reference, in float32.
Source: the released inference code's behaviour; OCP 8-bit floating point specification 1.0 for e4m3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

E4M3_MAX = 448.0


def quantise_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale for the whole tensor: (codes float8_e4m3fn like x, dequantisation scale [1] float32). No host synchronisation."""
    amax_1 = x.abs().amax().float().reshape(1)
    scale_1 = (E4M3_MAX / amax_1.clamp(min=1e-12)).clamp(max=E4M3_MAX)
    scaled = (x.float() * scale_1).to(x.dtype)
    return scaled.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale_1.reciprocal()


def scaled_product_reference(
    x_MK: torch.Tensor,
    scale_x: torch.Tensor,
    w_NK: torch.Tensor,
    scale_w: torch.Tensor,
    bias_N: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Plain torch over codes, float32 sums, one rounding to dtype; also the CPU path."""
    y_MN = F.linear(x_MK.float(), w_NK.float()) * (scale_x * scale_w)
    return (y_MN if bias_N is None else y_MN + bias_N.float()).to(dtype)


def scaled_product_native(
    x_MK: torch.Tensor,
    scale_x: torch.Tensor,
    w_NK: torch.Tensor,
    scale_w: torch.Tensor,
    bias_N: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """torch._scaled_mm: the bias joins in the epilogue, in dtype."""
    bias_N = None if bias_N is None else bias_N.to(dtype)
    fast = x_MK.is_cuda
    w_KN = w_NK.t()  # column-major, as the 8-bit tensor cores want it
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        x_MK, w_KN, scale_x, scale_w, bias=bias_N, out_dtype=dtype, use_fast_accum=fast
    )


def _native(x: torch.Tensor, w_NK: torch.Tensor) -> bool:
    """Whether the device multiplies these codes itself."""
    if not x.is_cuda or x.dtype not in (torch.bfloat16, torch.float16) or w_NK.shape[0] % 16 or w_NK.shape[1] % 16:
        return False
    return torch.cuda.get_device_capability(x.device) >= (8, 9)


def fp8_linear(x: torch.Tensor, w_NK: torch.Tensor, scale_w: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """The op. Quantises x, multiplies the codes, adds the bias: [..., K] -> [..., N] in x's dtype.

    One amax over all of x: the result for a token depends on the other tokens of the call.
    """
    x_MK, scale_x = quantise_tensor(x.reshape(-1, x.shape[-1]))
    product = scaled_product_native if _native(x, w_NK) else scaled_product_reference
    return product(x_MK, scale_x, w_NK, scale_w, bias_N, x.dtype).reshape(*x.shape[:-1], w_NK.shape[0])
