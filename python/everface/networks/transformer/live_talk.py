"""LiveTalk's transformer (arXiv 2512.23576): noise, a reference image, audio and text in, velocity out, over a cache of clean blocks.

Parameters carry the names of the official checkpoint. Three things set it apart from the speech-to-video transformer in dit.py: the reference
and a mask are channels of every frame's input, the audio is one vector a latent frame and layer, added before the layer, and all noise levels
share one cache. Every forward of a block writes its keys and values into the block's slots; a last forward with the finished latents at t = 0
leaves the clean ones there. The first blocks of a stream stay in the cache for ever, the others in a ring behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from everface.core.live_talk_config import LiveTalkConfig
from everface.kernels.fused.flow_step import flow_step_tokens, unpatchify
from everface.kernels.fused.qk_norm_rope_store import Start
from everface.networks.transformer.backbone import Backbone, StepMod, TimeMod
from everface.networks.transformer.kv_cache import kv_pair
from everface.networks.transformer.layers import KV, Head, Patchify, Ring, TextKV, TransformerBlock
from everface.networks.transformer.linear import Residual
from everface.networks.transformer.rope import Rope, Time

FRAMES_PER_LATENT = 4  # video frames, whose audio features one latent frame joins


class BlockPlace(NamedTuple):
    """Position of a block in its stream and in the cache. Numbers, or int64 tensors of no dimension; `used` is always a number."""

    first: Time  # latent frame, from the start of the stream
    start: Start  # first slot that the block fills
    used: int  # slots filled then


class AudioProjection(nn.Module):
    """Features of four video frames -> one vector a latent frame."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(FRAMES_PER_LATENT * channels, hidden)
        self.norm_out = nn.LayerNorm(hidden, eps=1e-5)

    def forward(self, features_TC: torch.Tensor) -> torch.Tensor:
        return self.norm_out(self.proj(features_TC.unflatten(0, (-1, FRAMES_PER_LATENT)).flatten(1)))


class LiveTalkAudio(nn.Module):
    """The part of the transformer that the session's process needs: features of a block to vectors of its layers."""

    def __init__(self, cfg: LiveTalkConfig) -> None:
        super().__init__()
        self.audio_proj = AudioProjection(cfg.audio_channels, cfg.audio_hidden_size)
        self.audio_cond_projs = nn.ModuleList(nn.Linear(cfg.audio_hidden_size, cfg.dim) for _ in cfg.audio_layers)

    def audio_vectors(self, features_TC: torch.Tensor) -> torch.Tensor:
        """Features [4F, C] of the video frames of F latents -> vectors [A, F, D], one for each layer of cfg.audio_layers. The first latent
        of a stream is one video frame, repeated: `pad_first`."""
        packed_FH = self.pack_audio(features_TC)
        return torch.stack([project(packed_FH) for project in self.audio_cond_projs])

    def pack_audio(self, features_TC: torch.Tensor) -> torch.Tensor:
        """[4F, C] -> [F, hidden]."""
        return self.audio_proj(features_TC.to(self.audio_proj.proj.weight.dtype))


def pad_first(features_TC: torch.Tensor) -> torch.Tensor:
    """The first row of a stream's features three times more, so that it fills a latent frame: [1 + 4k, C] -> [4 + 4k, C]."""
    return torch.cat((features_TC[:1].expand(FRAMES_PER_LATENT - 1, -1), features_TC))


class LiveTalkDiT(Backbone[LiveTalkConfig], LiveTalkAudio):
    """The whole model. `forward` streams."""

    def __init__(self, cfg: LiveTalkConfig) -> None:
        super().__init__(cfg)
        self.cfg = cfg
        dim = cfg.dim
        self.patch_embedding = Patchify(cfg.in_dim, dim, cfg.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(cfg.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )  # fmt: skip
        self.time_embedding = nn.Sequential(nn.Linear(cfg.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.num_layers))
        self.head = Head(cfg)

    # The constants of a session

    def embed_reference(self, ref_16_1hw: torch.Tensor) -> torch.Tensor:
        """The part of the patch embedding that the reference latent and the mask make, with the bias: [2, P, D], for the first latent frame
        of a stream, whose mask is 0, and for all others, whose mask is 1."""
        channels = self.cfg.out_dim
        ref_B16 = ref_16_1hw.to(self.dtype)[None].expand(2, -1, -1, -1, -1)
        mask_B1 = torch.zeros_like(ref_B16[:, :1])
        mask_B1[1] = 1
        return self._patches(torch.cat((ref_B16, mask_B1), dim=1), channels, self.patch_embedding.bias)[:, 0]

    def condition(self, reference_2PD: torch.Tensor, first: bool) -> torch.Tensor:
        """What `embed_reference` made, for the frames of a block: [F, P, D]. `first`: the block begins the stream."""
        index = [0 if first and f == 0 else 1 for f in range(self.cfg.block_frames)]
        return reference_2PD[index]

    def rope(self, grid: tuple[int, int]) -> Rope:
        """Rotation tables for one grid of tokens (rows, columns)."""
        return Rope(self.cfg.block_frames, grid, self.cfg.head_dim, [], device=self.head.modulation.device)

    def new_cache(self, h: int, w: int) -> KV:
        """Empty keys and values [layers, slots, heads, width] of one session at latent size h x w."""
        return kv_pair(cache_size(self.cfg, h, w), self.dtype, self.head.modulation.device, self.quantized_dtype)

    def block_place(self, grid: tuple[int, int], run: int) -> BlockPlace:
        """Place of the `run`-th block of a stream, with frames of this grid."""
        cfg = self.cfg
        block = cfg.block_frames * grid[0] * grid[1]
        return BlockPlace(cfg.block_frames * run, block * block_slot(cfg, run), block * min(run + 1, cfg.window_blocks))

    # A forward

    def tokens(
        self, x_16Fhw: torch.Tensor, condition_FPD: torch.Tensor, mod: StepMod, text_kv: list[TextKV], audio_AFD: torch.Tensor,
        cache: KV, rope: Rope, place: BlockPlace,
    ) -> torch.Tensor:  # fmt: skip
        """Velocity of one block at one noise level, as tokens [1, F, P, E]. Writes the block's keys and values into its slots.

        Every argument but `place.used` may be on a GPU and is not read on the host, so the whole can be captured in a graph.
        """
        table, (k_LNHd, v_LNHd) = rope.block(place.first), cache
        r = Residual(self._patches(x_16Fhw[None], 0, None) + condition_FPD)
        for layer, block in enumerate(self.transformer_blocks()):
            if layer in self.cfg.audio_layers:
                r = Residual(r.value() + audio_AFD[self.cfg.audio_layers.index(layer), :, None])
            r = block.stream(r, mod.blocks[layer], text_kv[layer], Ring(k_LNHd[layer], v_LNHd[layer], place.start, place.used, table))
        return self.head.tokens(r, mod.head)

    def clean(
        self, x_16Fhw: torch.Tensor, sigma: float, condition_FPD: torch.Tensor, mod: StepMod, text_kv: list[TextKV], audio_AFD: torch.Tensor,
        cache: KV, rope: Rope, place: BlockPlace,
    ) -> torch.Tensor:  # fmt: skip
        """The clean latents that the velocity at noise level `sigma` points to: x - sigma * v."""
        out = self.tokens(x_16Fhw, condition_FPD, mod, text_kv, audio_AFD, cache, rope, place)
        return flow_step_tokens(x_16Fhw[None], out, self.grid(x_16Fhw), self.head.patch, sigma, 0.0)[0]

    def forward(
        self, x_16Fhw: torch.Tensor, ref_16_1hw: torch.Tensor, time: TimeMod, text_kv: list[KV], audio_AFD: torch.Tensor, cache: KV, run: int,
    ) -> torch.Tensor:  # fmt: skip
        """Velocity of the `run`-th block of a stream, with all constants computed again: for tests and for inspecting one forward."""
        place = self.block_place(self.grid(x_16Fhw), run)
        return self.place_forward(x_16Fhw, ref_16_1hw, time, text_kv, audio_AFD, cache, place, begins=run == 0)

    @torch.no_grad()
    def place_forward(
        self, x_16Fhw: torch.Tensor, ref_16_1hw: torch.Tensor, time: TimeMod, text_kv: list[KV], audio_AFD: torch.Tensor, cache: KV,
        place: BlockPlace, begins: bool,
    ) -> torch.Tensor:  # fmt: skip
        """The same of a block anywhere. `begins`: its first frame is the stream's first."""
        grid, condition = self.grid(x_16Fhw), self.condition(self.embed_reference(ref_16_1hw), begins)
        out = self.tokens(
            x_16Fhw, condition, self.modulations(time), self.stream_text_kv(text_kv), audio_AFD.to(self.dtype), cache, self.rope(grid), place
        )
        return unpatchify(out, grid, self.head.patch)[0]

    def _patches(self, x_BCFhw: torch.Tensor, first: int, bias: torch.Tensor | None) -> torch.Tensor:
        """The patch embedding's part from channel `first` on: [B, F, P, D]."""
        patch = self.patch_embedding
        return patch.project(x_BCFhw, patch.weight[:, first : first + x_BCFhw.shape[1]], bias)


def block_slot(cfg: LiveTalkConfig, run: int) -> int:
    """Which of the cache's places, a block each, the `run`-th block of a stream fills."""
    return run if run < cfg.window_blocks else cfg.sink_blocks + (run - cfg.sink_blocks) % (cfg.window_blocks - cfg.sink_blocks)


def cache_size(cfg: LiveTalkConfig, h: int, w: int) -> tuple[int, int, int, int]:
    """(layers, slots, heads, width) of a session's keys at latent size h x w."""
    tokens = (h // cfg.patch_size[1]) * (w // cfg.patch_size[2])
    return cfg.num_layers, cfg.window_blocks * cfg.block_frames * tokens, cfg.num_heads, cfg.head_dim
