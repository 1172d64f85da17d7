"""What the transformers of the Wan family have in common: time and text embeddings, blocks under their official names, the head.

A model adds its own input, its audio and its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from everface.core.config import TransformerConfig
from everface.kernels.fused.gate_norm_modulate import Pair
from everface.kernels.fused.row_primitives import E4M3
from everface.networks.transformer.layers import KV, BlockMod, Head, Patchify, TextKV, TransformerBlock
from everface.networks.transformer.linear import linear_f32
from everface.networks.transformer.qkv_scales import QKVScales

Config = TypeVar("Config", bound=TransformerConfig)


class TimeMod(NamedTuple):
    """Embedding of a timestep, float32: `e_D` for the head, `e0_6D` for the blocks. Constant for a step role."""

    e_D: torch.Tensor
    e0_6D: torch.Tensor


class StepMod(NamedTuple):
    """Modulation of every block and of the head at a timestep: all that a streaming step needs of its time."""

    blocks: list[BlockMod]
    head: Pair


def sinusoid(t: float | torch.Tensor, freq_dim: int, device: torch.device | None = None) -> torch.Tensor:
    """Timestep(s), 0..1000, of any shape [...] -> [..., freq_dim] float64: cosines, then sines."""
    half = freq_dim // 2
    index = torch.arange(half, dtype=torch.float64, device=device)
    angle = torch.as_tensor(t, dtype=torch.float64, device=device)[..., None] * 10000.0 ** (-index / half)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class Backbone(nn.Module, Generic[Config]):
    """The methods. A subclass makes the modules, in its own order."""

    cfg: Config
    patch_embedding: Patchify
    text_embedding: nn.Sequential
    time_embedding: nn.Sequential
    time_projection: nn.Sequential
    blocks: nn.ModuleList
    head: Head

    # Embeddings

    def time(self, t: float | torch.Tensor) -> TimeMod:
        """Timestep(s), 0..1000, of any shape [...] -> e [..., D] and e0 [..., 6, D]. Angles are float64, the rest float32."""
        first, _, second = self.time_embedding
        project = self.time_projection[1]
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and isinstance(project, nn.Linear)
        waves = sinusoid(t, self.cfg.freq_dim, self.head.modulation.device)
        e = linear_f32(second, F.silu(linear_f32(first, waves)))
        return TimeMod(e, linear_f32(project, F.silu(e)).unflatten(-1, (6, -1)))

    def embed_text(self, text_LC: torch.Tensor) -> torch.Tensor:
        """Text features [..., L, C] cut or padded with zeros to text_len -> context [..., text_len, D]. Padding is attended to."""
        text = text_LC[..., : self.cfg.text_len, :]
        text = F.pad(text, (0, 0, 0, self.cfg.text_len - text.shape[-2]))
        return self.text_embedding(text.to(self.dtype))

    def text_kv(self, context_LD: torch.Tensor) -> list[KV]:
        """Per layer (k_BKHd, v_BKHd) of a context [K, D] (B = 1) or [B, K, D]. A constant of the session."""
        return list(self.text_layers(context_LD))

    def text_layers(self, context_LD: torch.Tensor) -> Iterator[KV]:
        """`text_kv` one layer at a time, so that no more than one has to be in memory."""
        context_BLD = context_LD if context_LD.dim() == 3 else context_LD[None]
        for block in self.transformer_blocks():
            yield block.cross_attn.keys_values(context_BLD)

    # Streaming: the constants of a step and of a text

    def modulations(self, time: TimeMod) -> StepMod:
        """Modulation of every block and of the head at a timestep, constant for a step role."""
        return StepMod(
            [block.modulations(time.e0_6D[None, None]) for block in self.transformer_blocks()], self.head.modulations(time.e_D[None, None])
        )

    def stream_text_kv(self, text_kv: list[KV]) -> list[TextKV]:
        """The text's keys and values for `tokens`, a layer each, from the result of `text_kv`. Constant for a session."""
        return [self.stream_text_layer(layer, kv) for layer, kv in enumerate(text_kv)]

    def stream_text_layer(self, layer: int, kv: KV) -> TextKV:
        """One layer of it."""
        return self.transformer_blocks()[layer].cross_attn.text_kv(kv)

    def fuse(self) -> Self:
        """For inference, after the weights are loaded: one GEMM for q, k and v, the head in float32. Parameter names change here."""
        for block in self.transformer_blocks():
            block.self_attn.fuse()
        self.head.head.float()
        return self

    # Sizes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, of everything but norms, time and head."""
        return self.patch_embedding.weight.dtype

    def grid(self, latent: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of tokens of a latent [..., h, w]."""
        return latent.shape[-2] // self.cfg.patch_size[1], latent.shape[-1] // self.cfg.patch_size[2]

    def transformer_blocks(self) -> list[TransformerBlock]:
        return [block for block in self.blocks if isinstance(block, TransformerBlock)]

    @property
    def quantized_dtype(self) -> torch.dtype | None:
        """The one-byte dtype of the KV cache where the blocks attend in 8 bits, else None."""
        return E4M3 if self._qkv_scales() else None

    def _qkv_scales(self) -> list[QKVScales]:
        return [block.self_attn.qkv_scales for block in self.transformer_blocks() if block.self_attn.qkv_scales is not None]
