"""Stage 1: diffusion forcing. The causal transformer learns to denoise a window of blocks, each at its own noise level.

Attention is full inside a block and causal between blocks, over the same window, sink and positions as the runtime's:
block b sees itself, the three blocks before it and the sink; the reference rolls ahead of the block by 4..30 latent frames.
The noise levels are mostly those the four-step sampler visits, half the time shared by the window (what timestep forcing
shows the model), half the time drawn for each block. Loss: velocity error, weighted towards mouth and eyes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import nn

from everface.kernels.attention.cross import cross
from everface.kernels.fused.qk_norm_rope_store import rotate
from everface.model.audio import PAST_FRAMES
from everface.model.dit import DiT
from everface.model.layers import KV, Attend
from everface.model.rope import frames_table, sink_time
from everface.train.characters import eyes_box, mouth_box
from everface.train.clips import Clips

LEVELS = (1.0, 0.8576923, 0.6021505, 0.0089286)
LEVEL_ODDS = (0.26, 0.32, 0.38, 0.04)


@dataclass(frozen=True)
class Window:
    """One training batch. B clips of n blocks; every clip of the batch stands at the same place of its stream."""

    x0_B16Fhw: torch.Tensor
    sigma_Bn: torch.Tensor
    reference_B16_1hw: torch.Tensor
    motion_B16Thw: torch.Tensor
    features_BLCF: torch.Tensor  # 5 past video frames, then 12 a block
    first_frame: int
    sink_distance: int


def draw_window(clips: Clips, batch: int, blocks: int, block_frames: int, rng: random.Random, device: str) -> Window:
    """A random batch: places near the start, within minutes and far beyond; the sink is the still picture, or, beyond the
    first clip, often a moving latent of the same character, as the adaptive attention sink has it."""
    rows = rng.sample(range(len(clips)), batch)
    frames = blocks * block_frames
    moving = clips.latents_N16Thw.shape[2] - 2
    offset = rng.randint(0, moving - frames)
    z = clips.latents_N16Thw[rows].to(device, torch.float32)
    features = clips.features_NLCF[rows, :, :, 4 * offset : 4 * (offset + frames) + PAST_FRAMES].to(device, torch.float32)
    place = rng.random()
    if place < 0.3:
        first = 0
    elif place < 0.6:
        first = block_frames * rng.randint(1, 200)
    else:
        first = block_frames * int(math.exp(rng.uniform(math.log(200), math.log(100_000))))
    reference = z[:, :, :1]
    if first >= 4 * block_frames and rng.random() < 0.6:
        start = rng.randint(2, moving + 1)
        reference = z[:, :, start : start + 1]
    motion = torch.cat([z[:, :, :2], z[:, :, 1:2].expand(-1, -1, 17, -1, -1)], dim=2)
    return Window(
        z[:, :, 2 + offset : 2 + offset + frames],
        draw_sigmas(batch, blocks, rng).to(device),
        reference,
        motion,
        features,
        first,
        rng.randint(4, 30),
    )


def draw_sigmas(batch: int, blocks: int, rng: random.Random) -> torch.Tensor:
    """Noise levels [batch, blocks]: 85 % at the sampler's own levels, the rest anywhere; half the clips share one level."""

    def one() -> float:
        if rng.random() < 0.85:
            return rng.choices(LEVELS, LEVEL_ODDS)[0]
        u = rng.random()
        return 3 * u / (1 + 2 * u)

    rows = []
    for _ in range(batch):
        shared = one()
        rows.append([shared] * blocks if rng.random() < 0.5 else [one() for _ in range(blocks)])
    return torch.tensor(rows)


class WindowModel(nn.Module):
    """The transformer run over a whole window with gradients: the trainer's counterpart of the runtime's step."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, x_B16Fhw: torch.Tensor, window: Window) -> torch.Tensor:
        """Velocity [B, 16, F, h, w] of the noised window. The residual stream stays float32 under autocast."""
        dit, cfg = self.dit, self.dit.cfg
        n, grid, device = cfg.block_frames, dit.grid(x_B16Fhw), x_B16Fhw.device
        frames, block_tokens = x_B16Fhw.shape[2], n * grid[0] * grid[1]
        x = dit.embed_patches(x_B16Fhw).float()
        time = dit.time(window.sigma_Bn.repeat_interleave(n, dim=1) * 1000)
        text_kv = dit.text_kv(dit.embed_text(torch.zeros(1, cfg.text_dim, device=device)))
        local, glob = dit.casual_audio_encoder.encode_blocks(window.features_BLCF)
        sink = dit.prefill(window.reference_B16_1hw, window.motion_B16Thw, text_kv)
        table = frames_table(window.first_frame, frames, grid, cfg.head_dim, device=device)
        sink_tables = [
            dit.sink_table(grid, sink_time(window.first_frame + f, window.sink_distance)) for f in range(0, frames, n)
        ]
        for layer, block in enumerate(dit.blocks):
            attend = causal_attention(table, sink_tables, sink[layer], block_tokens, cfg.window_blocks)
            x = dit.inject(layer, block(x, time.e0_6D, text_kv[layer], attend), local, glob)
        return dit.head(x, time.e_D, grid)


def causal_attention(
    table: torch.Tensor, sink_tables: list[torch.Tensor], sink: KV, block_tokens: int, window_blocks: int
) -> Attend:
    """Each block over [itself, the blocks before it that a ring would hold, the sink], by plain slices: exact, and cheaper
    than a mask. The sink is rotated anew for every block, because the reference rolls ahead of it."""
    sink_k, sink_v = sink

    def attend(q_BTHd: torch.Tensor, k_BTHd: torch.Tensor, v_BTHd: torch.Tensor) -> torch.Tensor:
        q, k = rotate(q_BTHd, table), rotate(k_BTHd, table)
        out = []
        for b, sink_table in enumerate(sink_tables):
            seen = slice(max(0, b + 1 - window_blocks) * block_tokens, (b + 1) * block_tokens)
            keys = torch.cat([k[:, seen], rotate(sink_k, sink_table)], dim=1)
            values = torch.cat([v_BTHd[:, seen], sink_v], dim=1)
            out.append(cross(q[:, b * block_tokens : (b + 1) * block_tokens], keys, values))
        return torch.cat(out, dim=1)

    return attend


def region_weight(h: int, w: int, mouth: float = 4.0, eyes: float = 3.0) -> torch.Tensor:
    """Loss weight [h, w] on the latent grid: 1, more over the mouth and the eyes, which fill few cells but carry the face."""
    weight = torch.ones(h, w)
    for box, gain in ((eyes_box(8 * h), eyes), (mouth_box(8 * h), mouth)):
        top, bottom, left, right = (round(v / 8) for v in box)
        weight[top:bottom, left:right] = gain
    return weight / weight.mean()


def window_loss(model: WindowModel, window: Window, weight_hw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Weighted mean squared velocity error; the target is noise - x0."""
    x0 = window.x0_B16Fhw
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    n = model.dit.cfg.block_frames
    sigma = window.sigma_Bn.repeat_interleave(n, dim=1)[:, None, :, None, None]
    v = model((1 - sigma) * x0 + sigma * noise, window)
    return (weight_hw * (v.float() - (noise - x0)).square()).mean()
