"""A causal convolution over a stream of video: it keeps the last two frames itself, and no frame is copied to join them.

Contract
    z = past frames, then x;   y[t] = bias + sum over i, j, k of W[i, j, k] z[t + i], zeros beyond the edges of a frame [+ residual]
    past' = the last two frames of z, written over the past
    x [B, CI, T, H, W], past [B, CI, 2, H, W] or None (all zero: the stream begins), W [CO, CI, 3, k, k] with k 1 or 3, bias [CO],
    residual and y [B, CO, T, H, W]; one floating dtype. Sums in float32; on a GPU one rounding, after the residual.
    Shapes are channels first, memory is channels last; on a GPU other layouts are copied.
    past is written in place, so its address is constant for the life of a stream. A new one is returned where there was none, and where
    gradients flow through it.
Cost
    2 * 3 k^2 CI CO flops a pixel and frame: 27.5 TFLOP for a block of 12 frames of 704x384, bound by tensor cores and, at 96
    channels, by L2 (docs/tuning.md). x and y are moved once: 16 GB a block in bfloat16.
Kernel
    Implicit GEMM: pixels of a frame x output channels, summed over taps and input channels; operands are loaded in place. The
    same kernel reads frames of half the size, and pixels that hold two frames (kernels/video/upsample_conv).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.kernels.launch import CompileSpec, Cost, Tiles, jit, metadata, runs_triton, select_tile, tile, tl
from everface.kernels.video.norm_silu import norm_silu, norm_silu_into
from everface.kernels.video.packed_conv import group_of, packed_conv, takes

PAST = 2  # frames

# --- reference


@functools.cache
def cpu_dtypes() -> frozenset[torch.dtype]:
    """Those that this CPU convolves in hardware: float32, and bfloat16 with AVX-512 BF16 or AMX, three to four times as fast."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    native = any(getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("avx512_bf16", "amx_tile"))
    return frozenset((torch.float32, torch.bfloat16) if native else (torch.float32,))


def conv3d_reference(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    """`F.conv3d`. On a CPU without gradient it calls oneDNN directly: for one small clip torch would take a far slower path. Training goes
    by two-dimensional convolutions on a GPU, where cuDNN does their backward pass well in bfloat16, and for single frames, whose gradient
    by oneDNN with AMX is written out of bounds in bfloat16 (torch 2.13)."""
    direct = x_BCTHW.device.type == "cpu" and x_BCTHW.dtype in cpu_dtypes()
    learns = torch.is_grad_enabled() and (x_BCTHW.requires_grad or weight.requires_grad)
    if (x_BCTHW.is_cuda and (learns or torch.is_autocast_enabled("cuda"))) or (learns and x_BCTHW.shape[2] == weight.shape[2] == 1):
        return conv3d_by_frames(x_BCTHW, weight, bias, padding)
    if direct and not learns and not torch.is_autocast_enabled("cpu"):
        return torch.mkldnn_convolution(x_BCTHW, weight, bias, padding, [1, 1, 1], [1, 1, 1], 1)
    return F.conv3d(x_BCTHW, weight, bias, 1, padding)


def conv3d_by_frames(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    """The same without padding in time: the frames under the taps lie side by side as channels of one `F.conv2d`."""
    batch, taps = len(x_BCTHW), weight.shape[2]
    x_BTHWC = x_BCTHW.movedim(1, -1)
    frames = x_BTHWC.shape[1] - taps + 1
    side = torch.cat([x_BTHWC[:, i : i + frames] for i in range(taps)], -1).flatten(0, 1).movedim(-1, 1)
    folded = weight.movedim(2, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(side, folded, bias, 1, padding[1:]).movedim(1, -1).unflatten(0, (batch, frames)).movedim(-1, 1)


def causal_conv3d_reference(
    x_BCTHW: Tensor, past_BC2HW: Tensor | None, weight: Tensor, bias: Tensor | None, residual_BCTHW: Tensor | None = None
) -> Tensor:  # fmt: skip
    """y. Plain torch; differentiable; also the CPU path."""
    padding = [0, weight.shape[3] // 2, weight.shape[4] // 2]
    if past_BC2HW is None and x_BCTHW.shape[2] == 1:  # only the last tap meets a frame: a third of the work
        y_BCTHW = conv3d_reference(x_BCTHW, weight[:, :, PAST:], bias, padding)
    else:
        past = [torch.zeros_like(x_BCTHW[:, :, :1])] * PAST if past_BC2HW is None else [past_BC2HW.to(x_BCTHW.dtype)]
        y_BCTHW = conv3d_reference(torch.cat([*past, x_BCTHW], 2), weight, bias, padding)
    return y_BCTHW if residual_BCTHW is None else residual_BCTHW + y_BCTHW


def next_past(x_BCTHW: Tensor, past_BC2HW: Tensor | None) -> Tensor:
    """past': written over the past itself. Under autograd a new one instead, and a copy where there is none or where it must not be
    written (autograd or inference mode may still need it)."""
    new, past = x_BCTHW[:, :, -PAST:], past_BC2HW
    learns = torch.is_grad_enabled() and (x_BCTHW.requires_grad or (past is not None and past.requires_grad))
    if learns and new.shape[2] == PAST:
        return new if new.requires_grad else new.clone()
    if learns:
        return torch.cat([torch.zeros_like(new) if past is None else past[:, :, 1:].to(new.dtype), new], 2)
    frozen = past is not None and (past.requires_grad or (past.is_inference() and not torch.is_inference_mode_enabled()))
    if past is None or past.dtype != new.dtype or frozen:
        b, c, _, h, w = x_BCTHW.shape
        past = x_BCTHW.new_zeros((b, PAST, h, w, c)).movedim(-1, 1)
        if past_BC2HW is not None:
            past.copy_(past_BC2HW)
    if new.shape[2] < PAST:
        past[:, :, 0].copy_(past[:, :, 1])
    past[:, :, -new.shape[2] :].copy_(new)
    return past


# --- kernel


def cost(args: dict[str, Any]) -> Cost:
    """Of one launch, from its arguments by name: every tap of every output counted, every tensor moved once."""
    names = ("x_ptr", "past_ptr", "w_ptr", "residual_ptr", "y_ptr")
    moved = sum(args[n].numel() * args[n].element_size() for n in names if args[n] is not None)
    return Cost(2 * args["y_ptr"].numel() * args["CI"] * args["KT"] * args["KS"] ** 2, moved)


@jit
def load_operand(ptr, rows, row_mask, cols, LIMIT: tl.constexpr, STEP: tl.constexpr):
    """A tile [rows, STEP] of adjacent columns. Without a mask of columns where STEP divides their number."""
    at = ptr + rows[:, None] + cols[None, :]
    if LIMIT % STEP == 0:
        return tl.load(at, mask=row_mask[:, None], other=0.0)
    return tl.load(at, mask=row_mask[:, None] & (cols < LIMIT)[None, :], other=0.0)


@jit
def split_halves(acc, BM: tl.constexpr, N: tl.constexpr):
    """The left and the right half of [BM, N], without leaving the registers."""
    return tl.split(tl.permute(tl.reshape(acc, [BM, 2, N // 2]), [0, 2, 1]))


@jit
def store_output(acc, bias_ptr, residual_ptr, y_ptr, pixel, valid, first, N: tl.constexpr, CO: tl.constexpr):
    """Bias, residual, one rounding, store of N output channels from `first` on. Pointers are those of the frame. Half by half where
    the sums fill half of the registers, as a store needs registers too."""
    if pixel.shape[0] * N > 16384:
        left, right = split_halves(acc, pixel.shape[0], N)
        store_part(left, bias_ptr, residual_ptr, y_ptr, pixel, valid, first, N // 2, CO)
        store_part(right, bias_ptr, residual_ptr, y_ptr, pixel, valid, first + N // 2, N // 2, CO)
    else:
        store_part(acc, bias_ptr, residual_ptr, y_ptr, pixel, valid, first, N, CO)


@jit
def store_part(acc, bias_ptr, residual_ptr, y_ptr, pixel, valid, first, N: tl.constexpr, CO: tl.constexpr):
    cols = first + tl.arange(0, N)
    mask = valid[:, None] & (cols < CO)[None, :]
    at = pixel[:, None] * CO + cols[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=cols < CO, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=mask)


@jit(launch_metadata=metadata("causal_conv3d", cost))
def causal_conv3d_kernel(
    x_ptr, past_ptr, w_ptr, bias_ptr, residual_ptr, y_ptr, frames, videos_x_frames, H, W,
    CI: tl.constexpr, CO: tl.constexpr, KT: tl.constexpr, KS: tl.constexpr, SIDE: tl.constexpr, UP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BN2: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BM pixels of one output frame, BN + BN2 output channels (two GEMMs share the pixels: no power of two is near 96).

    KT taps in time, KS x KS in space. Each pixel of x holds SIDE frames of CI channels side by side, the earlier first; each frame
    is seen UP times as large each way, nearest. W [CO, KT, KS, KS, CI] as channels last lays it out. Programs that run together
    read the same places of consecutive frames, so that most taps find them in the cache.
    """
    columns: tl.constexpr = (CO + BN + BN2 - 1) // (BN + BN2)
    chunks: tl.constexpr = (CI + BK - 1) // BK
    taps: tl.constexpr = KT * KS * KS
    pid = tl.program_id(0)
    first = pid % columns * (BN + BN2)
    frame = pid // columns % videos_x_frames
    video, t = frame // frames, frame % frames
    pixel = pid // (columns * videos_x_frames) * BM + tl.arange(0, BM)
    row, col = pixel // (W * UP), pixel % (W * UP)
    valid = pixel < H * W * (UP * UP)

    pitch: tl.constexpr = SIDE * CI
    frame_step = H.to(tl.int64) * W * pitch
    now_ptr = x_ptr + (video * frames + t) // SIDE * frame_step + t % SIDE * CI
    kept_ptr = now_ptr if past_ptr is None else past_ptr + (video * (KT - 1) + t) * frame_step
    start = tl.maximum(KT - 1 - t, 0) * KS * KS * chunks if past_ptr is None else 0  # taps before the stream

    out = first + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    if BN2:
        out2 = first + BN + tl.arange(0, BN2)
        acc2 = tl.zeros([BM, BN2], tl.float32)
    for step in tl.range(start, taps * chunks):  # pyright: ignore[reportGeneralTypeIssues]  a loop to Triton's compiler only
        tap, c = step // chunks, step % chunks * BK + tl.arange(0, BK)
        back = tap // (KS * KS) - (KT - 1)
        y, x = row + tap // KS % KS - KS // 2, col + tap % KS - KS // 2
        inside = (y >= 0) & (y < H * UP) & (x >= 0) & (x < W * UP)
        from_ptr = tl.where(t + back >= 0, now_ptr + back * frame_step, kept_ptr + (KT - 1 + back) * frame_step)
        a = load_operand(from_ptr, (y // UP * W + x // UP) * pitch, inside, c, CI, BK)
        w = load_operand(w_ptr, out * (taps * CI) + tap * CI, out < CO, c, CI, BK)
        acc = tl.dot(a, w.T, acc, input_precision=PRECISION)
        if BN2:
            w2 = load_operand(w_ptr, out2 * (taps * CI) + tap * CI, out2 < CO, c, CI, BK)
            acc2 = tl.dot(a, w2.T, acc2, input_precision=PRECISION)

    y_frame = frame * (H * W).to(tl.int64) * (UP * UP * CO)
    residual_frame = None if residual_ptr is None else residual_ptr + y_frame
    store_output(acc, bias_ptr, residual_frame, y_ptr + y_frame, pixel, valid, first, BN, CO)
    if BN2:
        store_output(acc2, bias_ptr, residual_frame, y_ptr + y_frame, pixel, valid, first + BN, BN2, CO)


# --- tiles: (bytes an element, columns, chunk). From arithmetic and the compile report, no other tried on a GPU.
# Every width of the 14B model's VAE is a multiple of 96: columns of 128 + 64 and of 64 + 32 waste nothing. A program reads BM + columns
# numbers through L2 for BM * columns products, so on Hopper its sums fill three quarters of the registers: 192 of 254 a thread,
# nothing spills, and 3 or 4 stages of both operands fit. The interpreter takes those of 80.

TILES: Tiles = {
    80: {
        **{(2, 192, chunk): tile(8, 3, BM=128, BN=128, BN2=64, BK=min(chunk, 32)) for chunk in (64, 32, 16)},
        **{(2, 96, chunk): tile(4, 3, BM=128, BN=64, BN2=32, BK=min(chunk, 32)) for chunk in (64, 32, 16)},
        **{(2, 64, chunk): tile(4, 3, BM=128, BN=64, BN2=0, BK=min(chunk, 32)) for chunk in (64, 32, 16)},
        **{(2, 16, chunk): tile(4, 3, BM=128, BN=16, BN2=0, BK=min(chunk, 32)) for chunk in (64, 32, 16)},
        **{(4, 192, chunk): tile(8, 2, BM=64, BN=128, BN2=64, BK=16) for chunk in (64, 32, 16)},
        **{(4, 96, chunk): tile(4, 2, BM=64, BN=64, BN2=32, BK=16) for chunk in (64, 32, 16)},
        **{(4, 64, chunk): tile(4, 2, BM=64, BN=64, BN2=0, BK=16) for chunk in (64, 32, 16)},
        **{(4, 16, chunk): tile(4, 2, BM=64, BN=16, BN2=0, BK=16) for chunk in (64, 32, 16)},
    },
    90: {
        (2, 192, 64): tile(8, 3, BM=256, BN=128, BN2=64, BK=64),
        (2, 192, 32): tile(8, 4, BM=256, BN=128, BN2=64, BK=32),
        (2, 96, 64): tile(8, 4, BM=512, BN=64, BN2=32, BK=32),
        (2, 96, 32): tile(8, 4, BM=512, BN=64, BN2=32, BK=32),
        (2, 16, 32): tile(4, 4, BM=256, BN=16, BN2=0, BK=32),
    },
}


def variant(c_in: int, c_out: int, itemsize: int) -> tuple[int, int, int]:
    """Which tile so many channels take."""
    columns = 192 if c_out % 192 == 0 else 96 if c_out % 96 == 0 else 16 if c_out <= 16 else 64
    return itemsize, columns, 64 if c_in % 64 == 0 else 16 if c_in <= 16 else 32


def precision(itemsize: int) -> str:
    """Of tl.dot: float32 operands go through the tensor cores as three tf32 products, which keep 22 bits."""
    return "tf32x3" if itemsize == 4 else "tf32"


# --- op


@torch.library.custom_op("everface::conv_frames", mutates_args=("y",))
def launch(
    x: Tensor, past: Tensor | None, w: Tensor, bias: Tensor | None, residual: Tensor | None, side: int, up: int, y: Tensor
) -> None:  # fmt: skip
    """The kernel, into an output that the caller owns. All contiguous, channels last: x [B, T, H, W, side * CI],
    past [B, KT - 1, H, W, CI], w [CO, KT, KS, KS, CI], residual and y [B, side * T, up * H, up * W, CO]."""
    selected = select_tile("causal_conv3d", TILES, x.device, variant(w.shape[-1], w.shape[0], x.element_size()))
    launch_tile(x, past, w, bias, residual, side, up, y, selected.options())


@launch.register_fake
def _(*args: Any) -> None:
    return None


def launch_tile(
    x: Tensor, past: Tensor | None, w: Tensor, bias: Tensor | None, residual: Tensor | None, side: int, up: int, y: Tensor,
    options: dict[str, int],
) -> None:  # fmt: skip
    """The kernel with a tile of the caller's choice."""
    (c_out, taps, space, _, c_in), (videos, frames, height, width) = w.shape, x.shape[:4]
    tiles = -(-height * width * up * up // options["BM"])
    columns = -(-c_out // (options["BN"] + options["BN2"]))
    causal_conv3d_kernel[(tiles * videos * frames * side * columns,)](
        x, past, w, bias, residual, y, frames * side, videos * frames * side, height, width,
        CI=c_in, CO=c_out, KT=taps, KS=space, SIDE=side, UP=up, PRECISION=precision(x.element_size()), **options,
    )  # fmt: skip


def runs_kernel(*tensors: Tensor | None) -> bool:
    """Whether the convolutions run on these: one dtype of two bytes. Float32 on a GPU is left to cuDNN: the kernel's three tf32
    products are exact, but several times slower than one, and only the reference image of a session is encoded in float32."""
    given = [t for t in tensors if t is not None]
    return runs_triton(*given) and len({t.dtype for t in given}) == 1 and given[0].element_size() == 2


def channels_last(x_BCTHW: Tensor) -> Tensor:
    """Channels last, contiguous: a view where memory is so already."""
    return x_BCTHW.movedim(1, -1).contiguous()


def causal_conv3d(
    x_BCTHW: Tensor, past_BC2HW: Tensor | None, weight: Tensor, bias: Tensor | None, residual_BCTHW: Tensor | None = None,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op. Returns (y, past'). `packed`: pack_conv(weight), for a CPU that has a use for it."""
    if packed is not None and past_BC2HW is not None and takes(x_BCTHW, past_BC2HW, residual_BCTHW, group_of(weight)):
        return packed_conv(x_BCTHW, None, past_BC2HW, packed, bias, residual_BCTHW, weight), past_BC2HW
    if runs_kernel(x_BCTHW, past_BC2HW, weight, bias, residual_BCTHW):
        x_BTHWC = channels_last(x_BCTHW)
        past, residual = (None if t is None else channels_last(t) for t in (past_BC2HW, residual_BCTHW))
        y_BTHWC = x_BTHWC.new_empty((*x_BTHWC.shape[:-1], weight.shape[0]))
        launch(x_BTHWC, past, channels_last(weight), bias, residual, 1, 1, y_BTHWC)
        y_BCTHW = y_BTHWC.movedim(-1, 1)
    else:
        y_BCTHW = causal_conv3d_reference(x_BCTHW, past_BC2HW, weight, bias, residual_BCTHW)
    return y_BCTHW, next_past(x_BCTHW, past_BC2HW)


def norm_silu_conv3d(
    x_BCTHW: Tensor, gamma: Tensor, past_BC2HW: Tensor | None, weight: Tensor, bias: Tensor | None,
    residual_BCTHW: Tensor | None = None, packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """causal_conv3d of norm_silu(x, gamma). On a CPU the norm writes next to the past, so that no frame is copied."""
    if packed is not None and past_BC2HW is not None and takes(x_BCTHW, past_BC2HW, residual_BCTHW, group_of(weight)):
        return packed_conv(x_BCTHW, gamma, past_BC2HW, packed, bias, residual_BCTHW, weight), past_BC2HW
    b, c, t, h, w = x_BCTHW.shape
    learns = torch.is_grad_enabled() and (x_BCTHW.requires_grad or weight.requires_grad)
    plain = x_BCTHW.device.type == "cpu" and x_BCTHW.dtype in cpu_dtypes() and not torch.is_autocast_enabled("cpu")
    if learns or not plain or past_BC2HW is None or past_BC2HW.dtype != x_BCTHW.dtype:
        return causal_conv3d(norm_silu(x_BCTHW, gamma), past_BC2HW, weight, bias, residual_BCTHW)
    u_BTHWC = x_BCTHW.new_empty((b, PAST + t, h, w, c))
    norm_silu_into(u_BTHWC[:, PAST:], x_BCTHW, gamma)
    u_BCTHW = u_BTHWC.movedim(-1, 1)
    u_BCTHW[:, :, :PAST] = past_BC2HW
    y_BCTHW = conv3d_reference(u_BCTHW, weight, bias, [0, weight.shape[3] // 2, weight.shape[4] // 2])
    past = next_past(u_BCTHW[:, :, PAST:], past_BC2HW)
    return y_BCTHW if residual_BCTHW is None else y_BCTHW.add_(residual_BCTHW), past


# --- what CI compiles


def compile_spec(
    arch: int, name: str, dtype: str, c_in: int, c_out: int, taps: int, space: int, up: int = 1, given: str = "past"
) -> CompileSpec:  # fmt: skip
    """`given`: which of past and residual exist. `up` 2 reads two frames a pixel."""
    itemsize = 4 if dtype == "fp32" else 2
    selected = select_tile("causal_conv3d", TILES, arch, variant(c_in, c_out, itemsize))
    pointers = [n for n in ("x", "past", "w", "bias", "residual", "y") if n in ("x", "w", "bias", "y") or n in given]
    absent = {f"{n}_ptr": None for n in ("past", "residual") if n not in pointers}
    signature = {f"{n}_ptr": f"*{dtype}" for n in pointers} | dict.fromkeys(("frames", "videos_x_frames", "H", "W"), "i32")
    channels = {"CI": c_in, "CO": c_out, "KT": taps, "KS": space, "SIDE": up, "UP": up}
    sizes = absent | dict(selected.sizes) | channels | {"PRECISION": precision(itemsize)}
    return CompileSpec(f"{name} {dtype} {c_in}>{c_out}", causal_conv3d_kernel, signature, sizes,
                       selected.num_warps, selected.num_stages, (arch,), unaligned=("frames", "videos_x_frames", "H", "W"), needs_wgmma=c_out >= 64)  # fmt: skip


COMPILE = [
    *(compile_spec(arch, "conv3d", "bf16", c, c, 3, 3, given="past residual") for c in (384, 192, 96) for arch in (80, 90, 100)),
    *(compile_spec(arch, "conv3d", "bf16", 192, 384, 3, 3) for arch in (90, 100)),
    *(compile_spec(arch, "conv3d", "bf16", 16, 384, 3, 3) for arch in (80, 90, 100)),
    *(compile_spec(arch, "conv3d", "bf16", 96, 3, 3, 3) for arch in (80, 90, 100)),
    *(compile_spec(arch, "conv3d time", "bf16", 384, 768, 3, 1) for arch in (90, 100)),
    *(compile_spec(arch, "conv3d", "fp32", 96, 96, 3, 3, given="past residual") for arch in (80, 90, 100)),
]
