"""Linear layer in 8-bit floats: the official one (one scale a tensor) and ours (one a token, one an output channel).

Contract
    quantize_tensor:  s = min(448 / max(amax|x|, 1e-12), 448);   quantized = e4m3(clamp(x s, -448, 448)), nearest even;  scale = 1 / s
    fp8_linear:       y = (x_q w_q^T) scale_x scale_w + bias              official `--fp8`: x is measured at every call
    fp8_linear_rows:  y = f((x_q w_q^T) scale_x[m] scale_w[n] + bias)     quantized by quantize_rows; f: GELU(tanh) or nothing
    x [..., K] bfloat16 (or float32, float16), w_q [N, K] float8_e4m3fn, scales [1] float32, bias [N] -> y [..., N] like x
    x_q [..., K], scale_x [..., 1], w_q [N, K], scale_w [N] or [N, 1], bias [N] -> y [..., N] in dtype; sums, scales,
    bias and GELU in float32, one rounding
    The product x s of quantize_tensor is rounded to x's dtype before it is quantized: from bfloat16 that is the official eager
    rounding; a float32 x keeps it, as a fusing compiler does (2 to 4 % of the quantized values differ, by one step).
    The cap s <= 448 means that a tensor with amax < 1, as nearly every weight is, always has s = 448.
Cost
    2 M N K flops on the 8-bit tensor cores, N K bytes of weight. At M = 3168 (a block) it is compute-bound: 3168 x 13,824 x
    5120 does 2570 flops a byte, 6 times what an H200 needs to be busy. 15.9 G weights take 15.9 GB instead of 31.9.
    fp8_linear reads the activation twice more (amax, then quantization); the input of fp8_linear_rows is quantized by the op before it.
Between the two GEMMs of the FFN
    The second needs the first's output quantized, and for that the largest value of a row of 13,824. A row spans 54 tiles of 256, so no
    epilogue has it. Scales for parts of a row cost time in the inner loop of the second GEMM, and a fixed scale needs calibration on real
    audio and images: with a wrong one large rows saturate. quantize_rows as a separate pass needs neither: 131 MB, 35 us beside 364 us
    of GEMM on an H200, about 42 us with GELU, which it computes too. The kernel's epilogue can still do it (RowLinear.gelu_in_epilogue, for
    comparison): a step then took 157.7 ms instead of 155.0.
Backends
    native   torch._scaled_mm with fast accumulation, as officially; with scales per row it writes bfloat16 only, without GELU
    triton   persistent, one program an SM, operands through TMA, float32 sums in the tensor cores' own
             precision (fast accumulation too)
    reference   plain torch in float32: CPU, other dtypes, GPUs before 8.9, K or N that are no multiples of 16
    The official layer takes native. Rows take triton only with GELU, from compute capability 9.0 to 10.x, where it saves a pass, else
    native: other GPUs have no TMA, and compiled for 8.9 the kernel takes 255 registers. On an H200 native is 4 and 7 % faster for q/k/v
    and o, triton 4 % for the second GEMM of the FFN.
Source: the behavior of the released inference code; OCP 8-bit floating point specification 1.0 for e4m3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.fused.row_primitives import E4M3_MAX, gelu_tanh
from everface.kernels.launch import (
    CompileSpec,
    Cost,
    Tiles,
    jit,
    metadata,
    multiprocessors,
    runs_triton,
    select_tile,
    tile,
    tile_family,
    tl,
)

# --- tiles

TILES: Tiles = {
    90: {"rows": tile(8, 4, BM=128, BN=256, BK=128, GROUP=8)},  # the best on Hopper that others measured; 1190 to 1280 TFLOP/s here
    100: {"rows": tile(8, 4, BM=128, BN=256, BK=128, GROUP=8)},
}
"""BM x BN x BK a program; the tiles of GROUP rows of tiles are walked together, so that their weights are read from the cache.
3168 rows are 25 tiles of 128; N of 15,360, 5120, 13,824, 5120 gives 1500, 500, 1350, 500 tiles of 256: 11.4, 3.8, 10.2, 3.8
waves on 132 SMs, 93 to 95 % full. The accumulator is stored in two halves, so that the store buffer fits beside four stages of
operands."""


# --- reference


def quantize_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    """One scale for the whole tensor: (quantized float8_e4m3fn like x, scale [1] float32). No host sync."""
    amax_1 = x.abs().amax().float().reshape(1)
    scale_1 = (E4M3_MAX / amax_1.clamp(min=1e-12)).clamp(max=E4M3_MAX)
    scaled = (x.float() * scale_1).to(x.dtype)
    return scaled.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale_1.reciprocal()


def scaled_gemm_reference(
    x_MK: Tensor, scale_x: Tensor, w_NK: Tensor, scale_w: Tensor, bias_N: Tensor | None, dtype: torch.dtype, gelu: bool = False
) -> Tensor:  # fmt: skip
    """Plain torch over quantized values, float32 sums, one rounding to dtype; also the CPU path.
    scale_x [1] or [M, 1], scale_w likewise."""
    y_MN = F.linear(x_MK.float(), w_NK.float()) * (scale_x * scale_w)
    y_MN = y_MN if bias_N is None else y_MN + bias_N.float()
    return (F.gelu(y_MN, approximate="tanh") if gelu else y_MN).to(dtype)


# --- backend: torch._scaled_mm


def scaled_gemm_native(
    x_MK: Tensor, scale_x: Tensor, w_NK: Tensor, scale_w: Tensor, bias_N: Tensor | None, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """torch._scaled_mm: the bias joins in the epilogue, in dtype. Scales [1] and [1], or [M, 1] and [N]."""
    bias_N = None if bias_N is None else bias_N.to(dtype)
    fast = x_MK.is_cuda
    w_KN = w_NK.t()  # column-major, as the 8-bit tensor cores want it
    scale_w = scale_w if scale_x.dim() == 1 else scale_w[None]
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]  torch has no public name for it
        x_MK, w_KN, scale_x, scale_w, bias=bias_N, out_dtype=dtype, use_fast_accum=fast
    )


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name."""
    m, n, k = args["M"], args["N"], args["K"]
    return Cost(2 * m * n * k, m * k + n * k + m * n * args["y_desc"].base.element_size())


@jit
def epilogue(acc, scale_x, scale_w_ptr, bias_ptr, cols, N, GELU: tl.constexpr, FAST: tl.constexpr):
    """Half a tile of y from its sums of quantized products."""
    y = acc * scale_x[:, None] * tl.load(scale_w_ptr + cols, mask=cols < N, other=0.0)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y = gelu_tanh(y, FAST)
    return y


@jit(launch_metadata=metadata("fp8_linear_rows", cost))
def fp8_rows_kernel(
    x_desc, w_desc, y_desc, scale_x_ptr, scale_w_ptr, bias_ptr, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, GELU: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Every program takes each num_programs-th tile. Beyond an edge the descriptors read zeros and write nothing."""
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    steps = tl.cdiv(K, BK)
    for tile_id in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        group = tile_id // (GROUP * tiles_n)
        rows = tl.minimum(tiles_m - group * GROUP, GROUP)
        m = (group * GROUP + tile_id % (GROUP * tiles_n) % rows) * BM
        n = (tile_id % (GROUP * tiles_n) // rows) * BN
        acc = tl.zeros([BM, BN], tl.float32)
        for step in range(steps):
            x = x_desc.load([m, step * BK])
            w = w_desc.load([n, step * BK])
            acc = tl.dot(x, w.T, acc)
        at_m = m + tl.arange(0, BM)
        scale_x = tl.load(scale_x_ptr + at_m, mask=at_m < M, other=0.0)
        left, right = tl.split(tl.permute(tl.reshape(acc, [BM, 2, BN // 2]), [0, 2, 1]))
        cols = n + tl.arange(0, BN // 2)
        left = epilogue(left, scale_x, scale_w_ptr, bias_ptr, cols, N, GELU, FAST)
        y_desc.store([m, n], left.to(y_desc.dtype))
        right = epilogue(right, scale_x, scale_w_ptr, bias_ptr, cols + BN // 2, N, GELU, FAST)
        y_desc.store([m, n + BN // 2], right.to(y_desc.dtype))


# --- what CI compiles


def compile_spec(family: int, gelu: bool) -> CompileSpec:
    sizes = dict(TILES[family]["rows"].sizes)
    m, n, k = sizes["BM"], sizes["BN"], sizes["BK"]
    operands = {"x_desc": f"tensordesc<fp8e4nv[{m},{k}]>", "w_desc": f"tensordesc<fp8e4nv[{n},{k}]>"}
    signature = operands | {"y_desc": f"tensordesc<bf16[{m},{n // 2}]>", "scale_x_ptr": "*fp32", "scale_w_ptr": "*fp32"}
    signature |= {"bias_ptr": "*bf16", "M": "i32", "N": "i32", "K": "i32"}
    name, selected = f"fp8_linear_rows{' gelu' if gelu else ''}", TILES[family]["rows"]
    constexprs, on_90 = {**sizes, "GELU": gelu, "FAST": True}, family == 90
    return CompileSpec(name, fp8_rows_kernel, signature, constexprs, selected.num_warps, selected.num_stages, (family,), needs_wgmma=on_90)


COMPILE = [compile_spec(family, gelu) for family in TILES for gelu in (False, True)]


# --- op


@torch.library.custom_op("everface::fp8_linear_rows", mutates_args=("y",))
def launch(x: Tensor, scale_x: Tensor, w: Tensor, scale_w: Tensor, bias: Tensor | None, gelu: bool, y: Tensor) -> None:
    """The kernel with the tile of its GPU, into y [M, N] that the caller owns. All contiguous."""
    options = select_tile("fp8_linear_rows", TILES, x.device, "rows").options()
    launch_tile(x, scale_x, w, scale_w, bias, gelu, y, options)


@launch.register_fake
def _(*args: Any) -> None:
    return None


def launch_tile(
    x_MK: Tensor, scale_x: Tensor, w_NK: Tensor, scale_w: Tensor, bias_N: Tensor | None, gelu: bool, y_MN: Tensor,
    options: dict[str, int],
) -> None:  # fmt: skip
    """The kernel with a tile of the caller's choice."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    (m, k), n = x_MK.shape, w_NK.shape[0]
    bm, bn, bk = options["BM"], options["BN"], options["BK"]
    descriptors = (
        TensorDescriptor.from_tensor(x_MK, [bm, bk]),
        TensorDescriptor.from_tensor(w_NK, [bn, bk]),
        TensorDescriptor.from_tensor(y_MN, [bm, bn // 2]),
    )
    programs = min(multiprocessors(x_MK.device), -(-m // bm) * -(-n // bn))
    fp8_rows_kernel[(programs,)](*descriptors, scale_x, scale_w, bias_N, m, n, k, GELU=gelu, FAST=x_MK.is_cuda, **options)


def _has_fp8_gemm(w_NK: Tensor) -> bool:
    """Whether the device has 8-bit tensor cores, and these sizes fit them."""
    if not w_NK.is_cuda or w_NK.shape[0] % 16 or w_NK.shape[1] % 16:
        return False
    return torch.cuda.get_device_capability(w_NK.device) >= (8, 9)


def fp8_linear(x: Tensor, w_NK: Tensor, scale_w: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """The official op. Quantizes x, multiplies, adds the bias: [..., K] -> [..., N] in x's dtype.

    One amax over all of x: the result for a token depends on the other tokens of the call.
    """
    x_MK, scale_x = quantize_tensor(x.reshape(-1, x.shape[-1]))
    native = x.dtype in (torch.bfloat16, torch.float16) and _has_fp8_gemm(w_NK)
    gemm = scaled_gemm_native if native else scaled_gemm_reference
    return gemm(x_MK, scale_x, w_NK, scale_w, bias_N, x.dtype).reshape(*x.shape[:-1], w_NK.shape[0])


def fp8_linear_rows(
    quantized_x: Tensor, scale_x: Tensor, w_NK: Tensor, scale_w: Tensor, bias_N: Tensor | None = None, *, gelu: bool = False,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The op over the results of quantize_rows: [..., K] -> [..., N] in dtype. A token's result depends on that token only."""
    x_MK, scale_M1 = quantized_x.reshape(-1, quantized_x.shape[-1]), scale_x.reshape(-1, 1)
    scale_N, size = scale_w.reshape(-1), (*quantized_x.shape[:-1], w_NK.shape[0])
    has_gemm = dtype == torch.bfloat16 and _has_fp8_gemm(w_NK)
    if has_gemm and gelu and tile_family(w_NK.device) in TILES and runs_triton(x_MK, w_NK):
        y_MN = torch.empty((len(x_MK), len(w_NK)), dtype=dtype, device=x_MK.device)
        launch(x_MK.contiguous(), scale_M1.contiguous(), w_NK, scale_N, bias_N, gelu, y_MN)
        return y_MN.view(size)
    if has_gemm:
        y_MN = scaled_gemm_native(x_MK, scale_M1, w_NK, scale_N, bias_N, dtype)
        return (F.gelu(y_MN, approximate="tanh") if gelu else y_MN).view(size)
    return scaled_gemm_reference(x_MK, scale_M1, w_NK, scale_N, bias_N, dtype, gelu).view(size)
