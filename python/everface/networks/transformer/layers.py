"""The parts of the transformer, under the official parameter names: patchify, attentions, block, audio injection, head.

Shapes: B batch, F latent frames, P tokens a frame, T = F*P, D width, H heads, d head width, K keys of text or audio.
Low precision follows the official rules: the residual is float32 inside a block and rounded at its end; norms, modulation,
time and head are float32; everything else runs in the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from everface.core.config import DiTConfig, TransformerConfig
from everface.kernels.attention.cross import cross, cross_quantized
from everface.kernels.attention.self_attention import block_causal, block_causal_fp8
from everface.kernels.fused.audio_inject import EPS as AUDIO_EPS
from everface.kernels.fused.audio_inject import audio_inject
from everface.kernels.fused.flow_step import unpatchify
from everface.kernels.fused.gate_norm_modulate import Pair, gate_norm_modulate, gate_residual
from everface.kernels.fused.gelu import gelu
from everface.kernels.fused.norm_rope import rms_norm
from everface.kernels.fused.qk_norm_rope_quantize import qk_norm_rope_quantize
from everface.kernels.fused.qk_norm_rope_store import Start, qk_norm_rope_store
from everface.kernels.linear.quantize_rows import quantize_rows
from everface.networks.transformer.linear import (
    Activation,
    HostLinear,
    Layer,
    PackedLinear,
    Quantized,
    Residual,
    RowLinear,
    e4m3_scale,
    linear_f32,
    norm_for,
    pack_linears,
    stack_linears,
)
from everface.networks.transformer.qkv_scales import QKVScales

KV = tuple[torch.Tensor, torch.Tensor]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(q_BTHd, k_BTHd, v_BTHd) -> o_BTHd. q and k are normalized, split into heads and not rotated."""
BlockMod = tuple[torch.Tensor, ...]
"""shift, scale, gate of the self-attention, then of the FFN: six of [B, F, 1, D] float32, B and F may be 1."""


class TextKV(NamedTuple):
    """Keys and values of the text for one layer, constant for a session, and the scale of its e4m3 output before an 8-bit GEMM. With a
    single key, v holds the output of the whole text attention instead of the value."""

    k_1KHd: torch.Tensor
    v_1KHd: torch.Tensor
    scale_1: torch.Tensor  # float32


class AudioKV(NamedTuple):
    """Audio keys, values and modulation of one injector for one block, of A speakers. The same for every denoising step."""

    k_AFKHd: torch.Tensor
    v_AFKHd: torch.Tensor
    shift_AF1D: torch.Tensor  # float32
    scale_AF1D: torch.Tensor
    scale_1: torch.Tensor  # float32, of the attention's e4m3 output before an 8-bit GEMM


@dataclass(frozen=True)
class Ring:
    """KV cache of one layer in a streaming forward: the block's slots to write, and the slots to attend to. 16 bits or e4m3. Batch 1."""

    k_NHd: torch.Tensor  # the sink, rotated for this block, then the ring
    v_NHd: torch.Tensor
    start: Start  # first slot of this block
    used: int  # slots written so far, sink and this block included
    table_TP2: torch.Tensor  # rotation of this block
    ranges_HR2: torch.Tensor | None = None  # int32, of slots that each head attends to, as block_causal reads them; None: all


class Patchify(nn.Conv3d):
    """A convolution with stride equal to its kernel, as one GEMM. [B, C, T, h, w] -> [B, T', P', D].

    The end of an axis that does not fill a patch is left out, as in the convolution.
    """

    def __init__(self, channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.project(input, self.weight, self.bias)

    def project(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """With other weights, for instance those of a part of the channels."""
        batch, channels, *size = input.shape
        pt, py, px = self.kernel_size
        t, y, x = (n // p for n, p in zip(size, self.kernel_size, strict=True))
        cut = input[:, :, : t * pt, : y * py, : x * px].reshape(batch, channels, t, pt, y, py, x, px)
        patch_BTPE = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, t, y * x, channels * pt * py * px)
        return F.linear(patch_BTPE.to(weight.dtype), weight.flatten(1), bias)


def operand_dtype(x: torch.Tensor) -> torch.dtype:
    """What the operands of a GEMM on x are: x's dtype, or what autocast makes of it, so that an op before the GEMM rounds once."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class RMSNorm(nn.Module):
    """RMS norm over the whole width."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Projections and norms that self, text and audio attention share."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.heads = (cfg.num_heads, cfg.head_dim)
        self.q = nn.Linear(cfg.dim, cfg.dim)
        self.k = nn.Linear(cfg.dim, cfg.dim)
        self.v = nn.Linear(cfg.dim, cfg.dim)
        self.o = nn.Linear(cfg.dim, cfg.dim)
        self.norm_q = RMSNorm(cfg.dim, cfg.eps)
        self.norm_k = RMSNorm(cfg.dim, cfg.eps)

    def queries(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """q_BTHd, normalized."""
        return self.norm_q(self.q(x_BTD)).unflatten(-1, self.heads)

    def keys_values(self, x_BTD: torch.Tensor) -> KV:
        """(k_BTHd normalized, v_BTHd)."""
        return self.norm_k(self.k(x_BTD)).unflatten(-1, self.heads), self.v(x_BTD).unflatten(-1, self.heads)


class SelfAttention(Attention):
    """x_BTD -> y_BTD. Streaming passes a Ring; training and the sink pass their own Attend.

    `fuse` makes q, k and v one layer `qkv`, for inference: it saves two of three launches and reads of x.
    With `qkv_scales` set, streaming attends in 8 bits, over an e4m3 Ring.
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__(cfg)
        self.qkv: Layer | None = None
        self.qkv_scales: QKVScales | None = None
        self.observe: Callable[[torch.Tensor, Ring], None] | None = None  # gets (q_THd, ring) of every streamed block, to measure

    def fuse(self) -> None:
        if self.qkv is None:
            self.qkv = stack_linears(self.q, self.k, self.v)
            del self.q, self.k, self.v

    def project(self, x: Activation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Raw q, k and v [..., D]; rows may be strided."""
        if self.qkv is None:
            return self.q(x), self.k(x), self.v(x)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return q, k, v

    def forward(self, x_BTD: torch.Tensor, attend: Attend) -> torch.Tensor:
        q, k, v = self.project(x_BTD)
        q, k, v = (y.unflatten(-1, self.heads) for y in (self.norm_q(q), self.norm_k(k), v))
        return self.o(attend(q, k, v).flatten(-2))

    def stream(self, u_BFPD: Activation, ring: Ring) -> torch.Tensor:
        """One block of one session: writes its keys and values into the ring. u [1, F, P, D] -> y of that shape."""
        q, k, v = self.project(u_BFPD)
        size, eps, scales = q.shape, self.norm_q.eps, self.qkv_scales
        q, k, v = q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2)
        if scales is None:
            weights = self.norm_q.weight, self.norm_k.weight
            q_THd = qk_norm_rope_store(q, k, v, *weights, eps, ring.table_TP2, ring.k_NHd, ring.v_NHd, ring.start)
            if self.observe is not None:
                self.observe(q_THd, ring)
            o_THd = block_causal(q_THd, ring.k_NHd, ring.v_NHd, ring.used, ring.ranges_HR2)
        else:
            vT_HdN, weights = ring.v_NHd.permute(1, 2, 0), (scales.weight_q_D, scales.weight_k_D)
            q_THd = qk_norm_rope_quantize(q, k, v, *weights, eps, ring.table_TP2, ring.k_NHd, vT_HdN, scales.v_factor_H, ring.start)
            factors = scales.qk_scale_H, scales.v_scale_H
            o_THd = block_causal_fp8(q_THd, ring.k_NHd, vT_HdN, ring.used, *factors, ring.ranges_HR2)
        return self.o(o_THd.reshape(size))


class CrossAttention(Attention):
    """x_BTD over keys and values made by `keys_values`; k and v of batch 1 serve the whole batch."""

    def forward(self, x_BTD: torch.Tensor, kv: KV) -> torch.Tensor:
        return self.o(cross(self.queries(x_BTD), *kv).flatten(-2))

    def stream(self, u_BFPD: Activation, kv: KV, scale_1: torch.Tensor | None = None) -> torch.Tensor:
        """The same for one block [1, F, P, D], quantized or not; kv of batch 1 are the text, of batch F the audio of each frame.
        With scale_1 and an 8-bit `o` the attention's output is quantized for it."""
        q = self.norm_q(self.q(u_BFPD))
        q_BTHd = (q[0] if len(kv[0]) > 1 else q.flatten(1, 2)).unflatten(-1, self.heads)
        if scale_1 is None or not isinstance(self.o, RowLinear):
            return self.o(cross(q_BTHd, *kv).reshape(q.shape))
        quantized, scale = cross_quantized(q_BTHd, *kv, scale_1)
        return self.o(Quantized(quantized.reshape(q.shape), scale.reshape(*q.shape[:-1], 1)))

    def keep_text_weights_on_host(self) -> None:
        """Move the layers of keys and values to host memory, for inference. Results stay the same."""
        for name in ("k", "v"):
            layer = self.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            setattr(self, name, HostLinear(layer))

    def single(self, kv: KV) -> torch.Tensor:
        """The output [B, 1, D] for every query when there is one key, as its softmax weight is always 1."""
        return self.o(kv[1].flatten(-2))

    def text_kv(self, kv: KV) -> TextKV:
        """The text's keys and values for `TransformerBlock.stream`."""
        k, v = kv if kv[0].shape[1] > 1 else (kv[0], self.single(kv).unflatten(-1, self.heads))
        return TextKV(k, v, e4m3_scale(v))


class TransformerBlock(nn.Module):
    """One transformer block: modulated self-attention, text attention, modulated FFN."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.modulation = nn.Parameter(nn.init.normal_(torch.empty(1, 6, cfg.dim), std=cfg.dim**-0.5))
        self.self_attn = SelfAttention(cfg)
        self.norm3 = nn.LayerNorm(cfg.dim, eps=cfg.eps)
        self.cross_attn = CrossAttention(cfg)
        self.ffn = nn.Sequential(
            nn.Linear(cfg.dim, cfg.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(cfg.ffn_dim, cfg.dim)
        )  # fmt: skip

    def pack(self) -> None:
        """For inference in bfloat16 on a CPU, after `fuse`: the layers of `stream` packed for its matrix unit, if it has one."""
        pack_linears(self, ("self_attn.qkv", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2"))

    def modulations(self, e0_BF6D: torch.Tensor) -> BlockMod:
        """Modulation of this block at a timestep: constant for a denoising step."""
        return (self.modulation.float() + e0_BF6D)[..., None, :].unbind(2)

    def forward(self, x_BFPD: torch.Tensor, e0_BF6D: torch.Tensor, text_kv: KV, attend: Attend) -> torch.Tensor:
        """e0 may have 1 for B and F; text_kv are (k_BKHd, v_BKHd) of this layer, B may be 1. Returns x_BFPD. For training and the sink."""
        dtype, size, operand = x_BFPD.dtype, x_BFPD.shape[1:3], operand_dtype(x_BFPD)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulations(e0_BF6D)

        x, u = gate_norm_modulate(x_BFPD, modulation=(shift1, scale1), eps=self.eps, norm_dtype=dtype, dtype=operand)
        y = self.self_attn(u.flatten(1, 2), attend).unflatten(1, size)
        if text_kv[0].shape[1] == 1:
            x = gate_residual(x, y, gate1)
            y = self.cross_attn.single(text_kv)[:, None]
        else:
            affine = (self.norm3.weight, self.norm3.bias)
            x, u = gate_norm_modulate(x, y, gate1, affine=affine, eps=self.eps, norm_dtype=dtype, dtype=operand)
            y = self.cross_attn(u.flatten(1, 2), text_kv).unflatten(1, size)
        x, u = gate_norm_modulate(x, y, modulation=(shift2, scale2), eps=self.eps, norm_dtype=torch.float32, dtype=operand)
        widen, _, narrow = self.ffn
        return gate_residual(x, narrow(gelu(widen(u))), gate2).to(dtype)

    def stream(self, r: Residual, m: BlockMod, text_kv: TextKV, ring: Ring) -> Residual:
        """The same numbers for one block of one session, in the fewest launches: the last addition is left to the next norm."""
        dtype, (shift1, scale1, gate1, shift2, scale2, gate2) = r.dtype, m
        attn, text = self.self_attn, self.cross_attn
        first = attn.q if attn.qkv is None else attn.qkv
        x, u = norm_for(first, r, modulation=(shift1, scale1), eps=self.eps, norm_dtype=dtype, residual_dtype=dtype)
        y = attn.stream(u, ring)
        if text_kv.k_1KHd.shape[1] == 1:
            x = gate_residual(x, y, gate1)
            y = text_kv.v_1KHd.flatten(-2)[:, None]
        else:
            affine = (self.norm3.weight, self.norm3.bias)
            x, u = norm_for(text.q, Residual(x, y, gate1), affine=affine, eps=self.eps, norm_dtype=dtype)
            y = text.stream(u, (text_kv.k_1KHd, text_kv.v_1KHd), text_kv.scale_1)
        x, u = norm_for(self.ffn[0], Residual(x, y), modulation=(shift2, scale2), eps=self.eps, norm_dtype=torch.float32)
        return Residual(x, self._run_ffn(u), gate2)

    def _run_ffn(self, u: Activation) -> torch.Tensor:
        widen, _, narrow = self.ffn
        if not isinstance(widen, RowLinear | PackedLinear):
            return narrow(gelu(widen(u)))
        if isinstance(widen, PackedLinear) or widen.gelu_in_epilogue:
            return narrow(widen(u, gelu=True))
        return narrow(Quantized(*quantize_rows(widen(u), gelu=True)))


class AdaIN(nn.Module):
    """The (shift, scale) of one injector from the global audio vector of a frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, global_BFD: torch.Tensor) -> torch.Tensor:
        return self.linear(F.silu(global_BFD))


class AudioInjector(nn.Module):
    """Audio conditioning after some of the blocks: the tokens of a latent frame attend to the audio of that frame."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        self.injector = nn.ModuleList(CrossAttention(cfg) for _ in cfg.audio_inject_layers)
        self.injector_adain_layers = nn.ModuleList(AdaIN(cfg.dim) for _ in cfg.audio_inject_layers)

    def forward(
        self, x_BFPD: torch.Tensor, index: int, local_BFKD: torch.Tensor, global_BFD: torch.Tensor
    ) -> torch.Tensor:  # fmt: skip
        """x plus what injector `index` (a position in audio_inject_layers) adds, within each frame. For training."""
        attention, adain = self._parts(index)
        u_BFPD = audio_inject(x_BFPD, adain(global_BFD), operand_dtype(x_BFPD))
        y_NPD = attention(u_BFPD.flatten(0, 1), attention.keys_values(local_BFKD.flatten(0, 1)))
        return x_BFPD + y_NPD.unflatten(0, x_BFPD.shape[:2])

    def pack(self) -> None:
        """For inference, as `TransformerBlock.pack`."""
        pack_linears(self, [f"injector.{n}.{name}" for n in range(len(self.injector)) for name in ("q", "o")])

    def audio_kv(self, index: int, local_AFKD: torch.Tensor, global_AFD: torch.Tensor) -> AudioKV:
        """Keys, values and modulation of a block's audio, for `stream`."""
        attention, adain = self._parts(index)
        shift, scale = adain(global_AFD).float()[..., None, :].chunk(2, dim=-1)
        k, v = attention.keys_values(local_AFKD)
        return AudioKV(k, v, shift, scale, e4m3_scale(v))

    def stream(self, r: Residual, index: int, audio_kv: AudioKV, masks_AFP1: torch.Tensor | None = None) -> Residual:
        """`forward` for one block of one session; its addition is left to the next norm. Of several speakers the sum is added, each times
        its mask, which has the model's dtype and 1 or F frames."""
        attention, _ = self._parts(index)
        k, v, shift, scale, scale_1 = audio_kv
        dtype, total = r.dtype, None
        for a in range(len(k)):
            modulation = (shift[a : a + 1], scale[a : a + 1])
            x, u = norm_for(attention.q, r, modulation=modulation, eps=AUDIO_EPS, norm_dtype=dtype, residual_dtype=dtype)
            y = attention.stream(u, (k[a], v[a]), scale_1)
            y = y if masks_AFP1 is None else y * masks_AFP1[a]
            total, r = y if total is None else total + y, Residual(x)
        return Residual(r.x, total)

    def _parts(self, index: int) -> tuple[CrossAttention, AdaIN]:
        attention, adain = self.injector[index], self.injector_adain_layers[index]
        assert isinstance(attention, CrossAttention) and isinstance(adain, AdaIN)
        return attention, adain


class Head(nn.Module):
    """Tokens to velocity = noise - clean latent. All in float32, the result in the dtype of the tokens."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.eps, self.patch = cfg.eps, cfg.patch_size[1:]
        self.modulation = nn.Parameter(nn.init.normal_(torch.empty(1, 2, cfg.dim), std=cfg.dim**-0.5))
        self.head = nn.Linear(cfg.dim, cfg.out_dim * self.patch[0] * self.patch[1])

    def modulations(self, e_BFD: torch.Tensor) -> Pair:
        """(shift, scale), each [B, F, 1, D] float32."""
        shift, scale = (self.modulation.float() + e_BFD[..., None, :])[..., None, :].unbind(2)
        return shift, scale

    def forward(self, x_BFPD: torch.Tensor, e_BFD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """e may have 1 for B and F; grid is (rows, columns) of tokens. Returns velocity_B16Fhw."""
        return unpatchify(self.tokens(Residual(x_BFPD), self.modulations(e_BFD)), grid, self.patch)

    def tokens(self, r: Residual, modulation: Pair) -> torch.Tensor:
        """Velocity as tokens [B, F, P, E], the channel fastest."""
        dtype = r.dtype
        _, u = gate_norm_modulate(
            *r, modulation=modulation, eps=self.eps, norm_dtype=dtype, dtype=torch.float32, residual_dtype=dtype
        )  # fmt: skip
        return linear_f32(self.head, u).to(dtype)
