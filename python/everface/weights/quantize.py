"""Two 8-bit policies: which layers of the DiT multiply in e4m3, and their replacement, after the LoRA is merged.

Official, for parity (`quantize_official`), one scale a tensor. Every Linear but the embeddings of text and time, the output head and the
last layer of the audio encoder: q, k, v, o and ffn of all blocks and the audio injectors with their AdaIN, 15.94 of the 16.30 G weights of
the release. Convolutions stay as they are.

Ours, for speed (`quantize_for_dtype`), one scale a token and an output channel, of a fused model (`DiT.fuse`): the layers in ROWS and
AUDIO_ROWS. The rest stays as it is, for these reasons:
    cross_attn.k, .v                text keys, computed once a session: no time to save, and every block of the stream reads them
    audio_injector: k, v, AdaIN     computed once a block for all steps
    patch_embedding, cond_encoder, frame_packer     once a forward or once a session; K of 64 saves nothing
    head, time, text, audio encoder                 float32 by the official rules, or computed once

Attention in 8 bits is separate (`quantize_attention`): the scales of networks/transformer/qkv_scales.py, and an e4m3 KV cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from everface.kernels.linear.fp8_linear import fp8_linear, quantize_tensor
from everface.networks.transformer.backbone import Backbone
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.layers import AudioInjector, TransformerBlock
from everface.networks.transformer.linear import RowLinear
from everface.networks.transformer.qkv_scales import TIMES, QKVScales, value_bound

EXCLUDED = ("text_embedding", "time_embedding", "time_projection", "head.head", "casual_audio_encoder.encoder.final_linear")

FP8_ATTENTION = "fp8-attention"
FP8_DTYPES = ("fp8", FP8_ATTENTION)  # of a deployment's dtypes

ROWS = ("self_attn.qkv", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2")
"""Of every block: 75.7 of the 79.7 TFLOP of GEMMs in a step of the 14B model at 704x384."""

AUDIO_ROWS = ("q", "o")
"""Of every audio injector: the other 4.0 TFLOP."""


class FP8Linear(nn.Module):
    """A Linear with an e4m3 weight [out, in] and one scale [1] (float32); the bias stays as it is. Not for training.

    Weight and scale are buffers: move the module with `.to(device)`, never with `.to(dtype)`, which would widen the weight.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        quantized_OI, scale_1 = quantize_tensor(layer.weight.detach())
        self.register_buffer("weight", quantized_OI)
        self.register_buffer("scale", scale_1)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out] in x's dtype; x is quantized with one scale for the whole call."""
        return fp8_linear(x, self.weight, self.scale, self.bias)


def quantized_names(dit: nn.Module) -> list[str]:
    """The names of the modules that the official policy quantizes, in module order."""
    linears = (name for name, module in dit.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linears if not any(name == out or name.startswith(f"{out}.") for out in EXCLUDED)]


def quantize_official(dit: nn.Module) -> None:
    """Replace those layers in place by FP8Linear, one at a time, so that no more than one weight is held twice."""
    for name in quantized_names(dit):
        _replace(dit, name, FP8Linear)


def quantize_per_row(dit: DiT) -> None:
    """Replace the layers that ROWS names in every block of a fused model by RowLinear, in place, one at a time."""
    for block in dit.transformer_blocks():
        quantize_block(block, "fp8", dit)


@torch.no_grad()
def quantize_attention(dit: Backbone, block: TransformerBlock) -> None:
    """Let a block of a fused model attend in 8 bits; the model's time embedding must be there. KV caches made before no longer fit."""
    e0_T6D = dit.time(torch.tensor(TIMES, dtype=torch.float64)).e0_6D
    attn, (shift, scale, *_) = block.self_attn, block.modulations(e0_T6D[None])
    assert isinstance(attn.qkv, nn.Linear | RowLinear)  # packed layers are made last
    bound_D = value_bound(attn.qkv, shift.flatten(0, 2), scale.flatten(0, 2))
    attn.qkv_scales = QKVScales(attn.norm_q.weight, attn.norm_k.weight, bound_D, dit.cfg.num_heads)


def quantize_block(block: TransformerBlock, dtype: str, dit: Backbone) -> None:
    """Quantize one block of a fused model in bfloat16 as a deployment's dtype asks: "fp8", "fp8-attention", or nothing."""
    for name in ROWS if dtype in FP8_DTYPES else ():
        _replace(block, name, RowLinear)
    if dtype == FP8_ATTENTION:
        quantize_attention(dit, block)


def quantize_audio(injector: AudioInjector, dtype: str) -> None:
    """The layers that AUDIO_ROWS names in every audio injector, likewise."""
    for attention in injector.injector:
        for name in AUDIO_ROWS if dtype in FP8_DTYPES else ():
            _replace(attention, name, RowLinear)


def quantize_for_dtype(dit: DiT, dtype: str) -> None:
    """`quantize_block` for every block."""
    for block in dit.transformer_blocks():
        quantize_block(block, dtype, dit)
    quantize_audio(dit.audio_injector, dtype)


def _replace(module: nn.Module, name: str, by: Callable[[nn.Linear], nn.Module]) -> None:
    path, _, leaf = name.rpartition(".")
    parent = module.get_submodule(path)
    layer = parent.get_submodule(leaf)
    assert isinstance(layer, nn.Linear)
    setattr(parent, leaf, by(layer))
