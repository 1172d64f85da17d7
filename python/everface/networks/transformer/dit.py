"""The causal speech-to-video transformer: noise, time, text, audio and a reference image in, velocity out.

Parameters carry the names of the official checkpoint. A streaming forward denoises one block of latent frames at one noise
level and keeps its keys and values in the ring of that level; training builds its own attention from the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from everface.core.config import DiTConfig
from everface.kernels.attention.cross import cross
from everface.kernels.fused.flow_step import flow_step_tokens, unpatchify
from everface.kernels.fused.norm_rope import rotate
from everface.kernels.fused.qk_norm_rope_store import Start
from everface.kernels.fused.row_primitives import to_e4m3
from everface.networks.audio.causal_encoder import CausalAudioEncoder
from everface.networks.transformer.backbone import Backbone, StepMod, TimeMod
from everface.networks.transformer.framepack import MOTION_GROUPS, FramePack, motion_tokens
from everface.networks.transformer.kv_cache import KVCache, kv_pair
from everface.networks.transformer.kv_profile import KeptKeys
from everface.networks.transformer.layers import (
    KV,
    AudioInjector,
    AudioKV,
    Head,
    Patchify,
    Ring,
    TextKV,
    TransformerBlock,
)
from everface.networks.transformer.linear import Residual
from everface.networks.transformer.rope import SINK_TIME, Rope, Time, frames_table, motion_table, sink_time

NOISY, REFERENCE, MOTION = range(3)  # rows of trainable_cond_mask


class BlockPosition(NamedTuple):
    """Position of a block in its stream and in its KV cache. Numbers, or int64 tensors of no dimension; `used` is always a number."""

    first: Time  # latent frame, from the start of the stream
    sink: Time  # time position of the reference
    start: Start  # first slot that the block fills, counted from the sink's first
    used: int  # slots filled then


class DiT(Backbone[DiTConfig]):
    """The whole model. `forward` streams; the `embed_*` methods, `blocks`, `inject`, `head` and `prefill` also serve training."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.kept_keys: list[KeptKeys] | None = None  # for each denoising step what its heads attend to; None: all keys
        dim = cfg.dim
        self.patch_embedding = Patchify(cfg.in_dim, dim, cfg.patch_size)
        self.cond_encoder = Patchify(cfg.cond_dim, dim, cfg.patch_size)
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.frame_packer = FramePack(cfg.in_dim, dim, cfg.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(cfg.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )  # fmt: skip
        self.time_embedding = nn.Sequential(nn.Linear(cfg.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.casual_audio_encoder = CausalAudioEncoder(dim, cfg.audio_dim, cfg.wav2vec_layers, cfg.num_audio_token)
        self.blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.num_layers))
        self.audio_injector = AudioInjector(cfg)
        self.head = Head(cfg)

    # Embeddings

    def embed_patches(self, x_B16Fhw: torch.Tensor, pose_B16Fhw: torch.Tensor | None = None) -> torch.Tensor:
        """Noisy latents -> x_BFPD. The pose may be [B, C, F, 1, 1], the same everywhere. Without one its latents are zeros, of which the encoder
        leaves its bias."""
        if pose_B16Fhw is None:
            pose = self.cond_encoder.bias
        else:
            everywhere = pose_B16Fhw.shape[-2:] == (1, 1)
            pose = self.cond_encoder(pose_B16Fhw.expand(*pose_B16Fhw.shape[:-2], *self.cfg.patch_size[1:]) if everywhere else pose_B16Fhw)
        return self.patch_embedding(x_B16Fhw) + pose + self.trainable_cond_mask.weight[NOISY]

    def embed_reference(self, ref_B16_1hw: torch.Tensor) -> torch.Tensor:
        """The reference image's latent frame -> tokens [B, P, D]."""
        return self.patch_embedding(ref_B16_1hw).flatten(1, 2) + self.trainable_cond_mask.weight[REFERENCE]

    def embed_motion(self, motion_B16Thw: torch.Tensor) -> torch.Tensor:
        """Latent frames of the past, the newest last -> tokens [B, M, D]."""
        return self.frame_packer(motion_B16Thw) + self.trainable_cond_mask.weight[MOTION]

    # The sink: reference and motion tokens

    def sink_table(self, grid: tuple[int, int], reference_time: int, *, rope_fp16: bool = False) -> torch.Tensor:
        """Rotation of the sink tokens with the reference at this time position."""
        d, device = self.cfg.head_dim, self.head.modulation.device
        reference = frames_table(reference_time, 1, grid, d, fp16=rope_fp16, device=device)
        return torch.cat((reference, motion_table(grid, MOTION_GROUPS, d, fp16=rope_fp16, device=device)))

    def prefill(
        self, ref_B16_1hw: torch.Tensor, motion_B16Thw: torch.Tensor, text_kv: list[KV], *, rope_fp16: bool = False
    ) -> list[KV]:
        """Per layer the un-rotated (k_BCHd, v_BCHd) of the sink tokens, which attend among themselves at t = 0. Differentiable."""
        sink: list[KV] = []
        self._run_prefill(ref_B16_1hw, motion_B16Thw, text_kv, rope_fp16, lambda _, k, v: sink.append((k, v)))
        return sink

    @torch.no_grad()
    def write_sink(
        self, ref_16_1hw: torch.Tensor, motion_16_Thw: torch.Tensor, text_kv: Iterable[KV],
        write: Callable[[int, torch.Tensor, torch.Tensor], None], *, rope_fp16: bool = False,
    ) -> None:  # fmt: skip
        """Call write(layer, k_CHd, v_CHd) with each layer's part of one session's sink as soon as it is computed, so that no more than one
        layer is in memory beside the cache: `text_kv` may be an iterator. Keys are not rotated. In 8-bit attention keys are divided by
        their scale, and values are in e4m3."""

        def quantize(layer: int, k_1CHd: torch.Tensor, v_1CHd: torch.Tensor) -> None:
            scales, (k_CHd,), (v_CHd,) = self.transformer_blocks()[layer].self_attn.qkv_scales, k_1CHd, v_1CHd
            if scales is not None:
                k_CHd = (k_CHd / scales.k_scale_H[:, None]).to(k_CHd.dtype)
                v_CHd = to_e4m3(v_CHd * scales.v_factor_H[:, None])
            write(layer, k_CHd, v_CHd)

        self._run_prefill(ref_16_1hw[None], motion_16_Thw[None], text_kv, rope_fp16, quantize)

    def prefill_sink(
        self, ref_16_1hw: torch.Tensor, motion_16_Thw: torch.Tensor, text_kv: Iterable[KV], *, rope_fp16: bool = False
    ) -> KV:
        """(k_LCHd, v_LCHd) for KVCache.prime: all that `write_sink` writes, the same for every denoising step."""
        sink: list[KV] = []
        self.write_sink(ref_16_1hw, motion_16_Thw, text_kv, lambda _, k, v: sink.append((k, v)), rope_fp16=rope_fp16)
        return torch.stack([k for k, _ in sink]), torch.stack([v for _, v in sink])

    def _run_prefill(
        self, ref_B16_1hw: torch.Tensor, motion_B16Thw: torch.Tensor, text_kv: Iterable[KV], rope_fp16: bool,
        keep: Callable[[int, torch.Tensor, torch.Tensor], None],
    ) -> None:  # fmt: skip
        x_B1CD = torch.cat((self.embed_reference(ref_B16_1hw), self.embed_motion(motion_B16Thw)), dim=1)[:, None]
        table = self.sink_table(self.grid(ref_B16_1hw), SINK_TIME, rope_fp16=rope_fp16)
        e0_BF6D = self.time(0.0).e0_6D[None, None]
        for layer, (block, kv) in enumerate(zip(self.blocks, text_kv, strict=True)):

            def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int = layer) -> torch.Tensor:
                keep(layer, k, v)
                return cross(rotate(q, table), rotate(k, table), v)

            x_B1CD = block(x_B1CD, e0_BF6D, kv, attend)

    # Training

    def inject(self, layer: int, x_BFPD: torch.Tensor, local_BFKD: torch.Tensor, global_BFD: torch.Tensor) -> torch.Tensor:
        """x after the audio conditioning that follows this layer, if any does."""
        if layer not in self.cfg.audio_inject_layers:
            return x_BFPD
        return self.audio_injector(x_BFPD, self.cfg.audio_inject_layers.index(layer), local_BFKD, global_BFD)

    # Streaming: first the constants, of a block's audio, of a size of video; then the step itself

    def audio_kv(self, local_AFKD: torch.Tensor, global_AFD: torch.Tensor) -> list[AudioKV]:
        """Audio keys, values and modulation of one block, an injector each. The same for all denoising steps. Of a single speaker the
        tensors may lack the axis A."""
        local, global_ = local_AFKD.to(self.dtype), global_AFD.to(self.dtype)
        if local.dim() == 3:
            local, global_ = local[None], global_[None]
        return [self.audio_injector.audio_kv(i, local, global_) for i in range(len(self.cfg.audio_inject_layers))]

    def rope(self, grid: tuple[int, int], *, fp16: bool = False) -> Rope:
        """Rotation tables for one grid of tokens (rows, columns)."""
        cfg = self.cfg
        return Rope(cfg.block_frames, grid, cfg.head_dim, MOTION_GROUPS, fp16=fp16, device=self.head.modulation.device)

    def tokens(
        self, x_16Fhw: torch.Tensor, mod: StepMod, text_kv: list[TextKV], audio_kv: list[AudioKV], cache: KVCache, rope: Rope,
        position: BlockPosition, pose_16Fhw: torch.Tensor | None = None, masks_AFP1: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Velocity of one block at one noise level, as tokens [1, F, P, E]. Writes the sink's keys, rotated for this block, and the block's
        keys and values into the KV cache of that level. `masks_AFP1`: the tokens of each speaker (`speakers.token_masks`), if there are several.

        Every argument but `position.used` may be on a GPU and is not read on the host, so the whole can be captured in a graph.
        """
        table = rope.block(position.first)
        rotate(cache.sink_k_LCHd, rope.sink(position.sink), out=cache.k_LNHd[:, : cache.sink])  # all layers at once
        r = Residual(self.embed_patches(x_16Fhw[None], None if pose_16Fhw is None else pose_16Fhw[None]))
        injected = {layer: i for i, layer in enumerate(self.cfg.audio_inject_layers)}
        ranges = self.key_ranges(cache, self.grid(x_16Fhw), position)
        for layer, block in enumerate(self.transformer_blocks()):
            ring = Ring(*cache.layer(layer), position.start, position.used, table, ranges[layer])
            r = block.stream(r, mod.blocks[layer], text_kv[layer], ring)
            if layer in injected:
                r = self.audio_injector.stream(r, injected[layer], audio_kv[injected[layer]], masks_AFP1)
        return self.head.tokens(r, mod.head)

    def key_ranges(self, cache: KVCache, grid: tuple[int, int], position: BlockPosition) -> Sequence[torch.Tensor | None]:
        """What the heads of each layer attend to, for its Ring."""
        if cache.kept is None:
            return [None] * self.cfg.num_layers
        frame = grid[0] * grid[1]
        return cache.kept.ranges(cache.sink, frame, frame * self.cfg.block_frames, position.start, position.used).unbind()

    def step(
        self, x_16Fhw: torch.Tensor, sigma: float, sigma_next: float, mod: StepMod, text_kv: list[TextKV], audio_kv: list[AudioKV],
        cache: KVCache, rope: Rope, position: BlockPosition, pose_16Fhw: torch.Tensor | None = None, masks_AFP1: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The block at the next noise level: `tokens` and the Euler step along it."""
        out = self.tokens(x_16Fhw, mod, text_kv, audio_kv, cache, rope, position, pose_16Fhw, masks_AFP1)
        return flow_step_tokens(x_16Fhw[None], out, self.grid(x_16Fhw), self.head.patch, sigma, sigma_next)[0]

    def block_position(self, grid: tuple[int, int], block_index: int, sink_distance: int, run: int | None = None) -> BlockPosition:
        """Position of block `block_index`, with frames of this grid, as the `run`-th block of its ring (by default the ring has had all before).

        The slot follows `run`, so that a ring which missed blocks never attends to a slot that was not written.
        """
        cfg, first = self.cfg, self.cfg.block_frames * block_index
        run = block_index if run is None else run
        block, sink = cfg.block_frames * grid[0] * grid[1], sink_tokens(grid)
        start, used = sink + block * (run % cfg.window_blocks), sink + block * min(run + 1, cfg.window_blocks)
        return BlockPosition(first, sink_time(first, sink_distance), start, used)

    @torch.no_grad()
    def forward(
        self,
        x_16Fhw: torch.Tensor,
        time: TimeMod,
        text_kv: list[KV],
        audio: tuple[torch.Tensor, torch.Tensor],
        cache: KVCache,
        block_index: int,
        sink_distance: int,
        pose_16Fhw: torch.Tensor | None = None,
        *,
        rope_fp16: bool = False,
    ) -> torch.Tensor:
        """Velocity of one block, with all constants computed again: for tests and for inspecting one forward.

        audio is (local_FKD, global_FD); block_index counts from the start of the stream and never wraps;
        sink_distance is how far ahead of the block the reference is, 4..30 latent frames. Inference only.
        """
        grid = self.grid(x_16Fhw)
        position = self.block_position(grid, block_index, sink_distance)
        out = self.tokens(
            x_16Fhw, self.modulations(time), self.stream_text_kv(text_kv), self.audio_kv(*audio), cache,
            self.rope(grid, fp16=rope_fp16), position, pose_16Fhw,
        )  # fmt: skip
        return unpatchify(out, grid, self.head.patch)[0]

    # Sizes

    def new_cache(self, h: int, w: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> KVCache:
        """An empty ring and sink for one denoising step of one session at latent size h x w; like the weights by default."""
        (layers, ring, heads, width), sink = cache_shape(self.cfg, h, w)
        dtype, device = dtype or self.dtype, device or self.head.modulation.device
        pair = kv_pair((layers, sink[1] + ring, heads, width), dtype, device, self.quantized_dtype)
        return KVCache(*pair, torch.zeros(sink, dtype=dtype, device=device))


def cache_shape(cfg: DiTConfig, h: int, w: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Sizes (L, slots, H, d) of the ring and (L, sink tokens, H, d) of the sink at latent size h x w."""
    rows, cols = h // cfg.patch_size[1], w // cfg.patch_size[2]
    slots, sink = cfg.window_blocks * cfg.block_frames * rows * cols, sink_tokens((rows, cols))
    return (cfg.num_layers, slots, cfg.num_heads, cfg.head_dim), (cfg.num_layers, sink, cfg.num_heads, cfg.head_dim)


def sink_tokens(grid: tuple[int, int]) -> int:
    """Tokens of the reference and of motion."""
    return grid[0] * grid[1] + motion_tokens(*grid)
