"""Stage 1: diffusion forcing. The causal transformer learns to denoise a window of blocks, each at its own noise level.

Attention is full inside a block and causal between blocks, over the same window, sink and positions as the runtime's:
block b sees itself, the three blocks before it and the sink; the reference rolls ahead of the block by 4..30 latent frames.
The noise levels are mostly those the four-step sampler visits, half the time shared by the window (what timestep forcing
shows the model), half the time drawn for each block; the plan says how much of each. Loss: velocity error, weighted towards mouth
and eyes. A scaffold stands in for the noisy history of stage 2: motion frames show the true past, each noised on its own.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from everface.kernels.attention.cross import cross
from everface.kernels.fused.norm_rope import rotate
from everface.model.audio import PAST_FRAMES
from everface.model.dit import DiT
from everface.model.layers import KV, Attend
from everface.model.rope import SINK_TIME, frames_table, sink_time
from everface.model.schedule import sigmas
from everface.train.characters import eyes_box, mouth_box
from everface.train.clips import Clips
from everface.train.plans import Stage1
from everface.train.spread import gather_before_gradients

MOTION_LATENTS = 19
LEVEL_ODDS = (0.26, 0.32, 0.38, 0.04)  # of the four-step sampler's
LAST_ODDS = 0.04  # of another sampler's last level, as little as those four have; the others share the rest


@dataclass(frozen=True)
class Window:
    """One training batch. B clips of n blocks; every clip of the batch stands at the same place of its stream."""

    x0_B16Fhw: torch.Tensor
    sigma_Bn: torch.Tensor
    reference_B16_1hw: torch.Tensor
    motion_B16Thw: torch.Tensor
    features_BLCF: torch.Tensor  # 5 past video frames, then 12 a block of three latents
    first_frame: int
    sink_distances: tuple[int, ...]  # of each block, as the runtime draws one for each
    past_B16Fhw: torch.Tensor | None = None  # ablation: the clip at `past_sigma`, which blocks see of those before them
    past_sigma: float = 0.0


def draw_window(
    clips: Clips, batch: int, blocks: int, block_frames: int, rng: random.Random, device: str, plan: Stage1
) -> Window:
    """A random batch: places near the start, within minutes and far beyond; the sink is the still picture, or, beyond the
    first clip, often a moving latent of the same character, as the adaptive attention sink has it."""
    rows = rng.sample(range(len(clips)), batch)
    frames = blocks * block_frames
    moving = clips.latents_N16Thw.shape[2] - 2
    offset = rng.randint(0, moving - frames)
    z = clips.latents_N16Thw[rows].to(device, torch.float32)
    features = clips.features_NLCF[rows, :, :, 4 * offset : 4 * (offset + frames) + PAST_FRAMES].to(device, torch.float32)
    first = block_frames * draw_place(rng, plan.near, plan.far, plan.reach)
    reference = z[:, :, :1]
    if first >= 4 * block_frames and rng.random() < 0.6 and plan.refresh:
        start = rng.randint(2, moving + 1)
        reference = z[:, :, start : start + 1]
    motion = torch.cat([z[:, :, :2], z[:, :, 1:2].expand(-1, -1, MOTION_LATENTS - 2, -1, -1)], dim=2)
    if first and rng.random() < plan.scaffold:
        motion = noised_past(z[:, :, : 2 + offset], rng)
    x0, sigma = z[:, :, 2 + offset : 2 + offset + frames], draw_sigmas(batch, blocks, rng, plan).to(device)
    distances = tuple(rng.randint(plan.sink_nearest, plan.sink_farthest) for _ in range(blocks))
    if not plan.rolling:
        distances = tuple(SINK_TIME - first - block_frames * b for b in range(blocks))
    window = Window(x0, sigma, reference, motion, features, first, distances)
    if plan.history == "own":
        return window
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(rng.getrandbits(63))).to(x0)
    return replace(window, past_B16Fhw=torch.lerp(x0, noise, plan.past_sigma), past_sigma=plan.past_sigma)


def draw_place(rng: random.Random, near: float, far: float, reach: int) -> int:
    """The block at which a window stands in its stream: `near` of them at the start, `far` of them from 200 blocks up to `reach`,
    evenly over the logarithm, the others in between."""
    place = rng.random()
    if place < near:
        return 0
    if place < 1 - far or reach <= 200:
        return rng.randint(1, min(200, reach))
    return int(math.exp(rng.uniform(math.log(200), math.log(reach))))


def noised_past(past_B16Thw: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The scaffold: the last 19 latent frames, the first repeated where there are fewer, each at a noise level of its own."""
    missing = max(0, MOTION_LATENTS - past_B16Thw.shape[2])
    z = torch.cat([past_B16Thw[:, :, :1].expand(-1, -1, missing, -1, -1), past_B16Thw], dim=2)[:, :, -MOTION_LATENTS:]
    g = torch.Generator().manual_seed(rng.getrandbits(63))
    sigma = torch.rand(len(z), 1, MOTION_LATENTS, 1, 1, generator=g).to(z)
    return (1 - sigma) * z + sigma * torch.randn(z.shape, generator=g).to(z)


def draw_sigmas(batch: int, blocks: int, rng: random.Random, plan: Stage1) -> torch.Tensor:
    """Noise levels [batch, blocks]: `on_levels` of them the sampler's own, the rest anywhere; `shared` of the clips have one level."""

    levels = sigmas(plan.steps)[:-1]
    share = (1 - LAST_ODDS) / max(plan.steps - 1, 1)
    odds = LEVEL_ODDS if plan.steps == len(LEVEL_ODDS) else (*[share] * (plan.steps - 1), LAST_ODDS)

    def one() -> float:
        if rng.random() < plan.on_levels:
            return rng.choices(levels, odds)[0]
        return shifted(rng.random(), plan.shift)

    rows = []
    for _ in range(batch):
        shared = one()
        rows.append([shared] * blocks if rng.random() < plan.shared else [one() for _ in range(blocks)])
    return torch.tensor(rows)


def shifted(u: float, shift: float) -> float:
    """A level of 0..1 moved towards noise."""
    return shift * u / (1 + (shift - 1) * u)


def draw_noise(shape: torch.Size, generator: torch.Generator, correlation: float) -> torch.Tensor:
    """Normal noise [B, C, F, h, w] in which a frame is `correlation` times the one before it and the rest anew: what the runtime
    starts from. Every frame alone is N(0, 1)."""
    noise = torch.randn(shape, generator=generator)
    for f in range(1, shape[2] if correlation else 0):
        noise[:, :, f] = correlation * noise[:, :, f - 1] + (1 - correlation**2) ** 0.5 * noise[:, :, f]
    return noise


class WindowModel(nn.Module):
    """The transformer run over a whole window with gradients: the trainer's counterpart of the runtime's step.

    `full`: every block sees the whole window, and the reference stands ahead of all of it: the bidirectional teacher.
    `again`: forget what is inside the transformer's blocks and make it again on the way back.
    """

    def __init__(self, dit: DiT, full: bool = False, again: bool = False) -> None:
        super().__init__()
        self.dit, self.full, self.again = dit, full, again

    def forward(self, x_B16Fhw: torch.Tensor, window: Window) -> torch.Tensor:
        """Velocity [B, 16, F, h, w] of the noised window. The residual stream stays float32 under autocast.

        A window with a past of its own goes through twice at once: as that past, and noised, each block after the past ones before it.
        """
        dit, cfg = self.dit, self.dit.cfg
        n, grid, device = cfg.block_frames, dit.grid(x_B16Fhw), x_B16Fhw.device
        frames, block_tokens = x_B16Fhw.shape[2], n * grid[0] * grid[1]
        sigma_BF = window.sigma_Bn.repeat_interleave(n, dim=1)
        table = frames_table(window.first_frame, frames, grid, cfg.head_dim, device=device)
        if twice := window.past_B16Fhw is not None:
            x_B16Fhw = torch.cat([window.past_B16Fhw, x_B16Fhw], dim=2)
            sigma_BF = torch.cat([torch.full_like(sigma_BF, window.past_sigma), sigma_BF], dim=1)
            table = table.repeat(2, 1, 1)
        x = dit.embed_patches(x_B16Fhw).float()  # first of all: it is the root's, which FSDP2 wants to run before its parts
        time = dit.time(sigma_BF * 1000)
        text_kv = dit.text_kv(dit.embed_text(torch.zeros(1, cfg.text_dim, device=device)))
        local, glob = dit.casual_audio_encoder.encode_blocks(window.features_BLCF)
        if twice:
            local, glob = local.repeat(1, 2, 1, 1), glob.repeat(1, 2, 1)
        sink = dit.prefill(window.reference_B16_1hw, window.motion_B16Thw, text_kv)
        places = [sink_time(window.first_frame + n * b, d) for b, d in enumerate(window.sink_distances)]
        sink_tables = [dit.sink_table(grid, place) for place in (places[-1:] if self.full else places)]
        for layer, block in enumerate(dit.blocks):
            gather_before_gradients(block, sink[layer])
            if self.full:
                attend = full_attention(table, sink_tables[0], sink[layer])
            else:
                attend = causal_attention(table, sink_tables, sink[layer], block_tokens, cfg.window_blocks)
            made = (x, time.e0_6D, text_kv[layer], attend)
            x = checkpoint(block, *made, use_reentrant=False) if self.again else block(*made)
            x = dit.inject(layer, x, local, glob)
        return dit.head(x, time.e_D, grid)[:, :, -frames:]


def full_attention(table: torch.Tensor, sink_table: torch.Tensor, sink: KV) -> Attend:
    """Every token over the whole window and the sink."""
    sink_k, sink_v = rotate(sink[0], sink_table), sink[1]

    def attend(q_BTHd: torch.Tensor, k_BTHd: torch.Tensor, v_BTHd: torch.Tensor) -> torch.Tensor:
        keys = torch.cat([rotate(k_BTHd, table), sink_k], dim=1)
        return cross(rotate(q_BTHd, table), keys, torch.cat([v_BTHd, sink_v], dim=1))

    return attend


def causal_attention(
    table: torch.Tensor, sink_tables: list[torch.Tensor], sink: KV, block_tokens: int, window_blocks: int
) -> Attend:
    """Each block over [the blocks before it that a ring would hold, itself, the sink], by plain slices: exact, and cheaper
    than a mask. The sink is rotated anew for every block, because the reference rolls ahead of it.

    Where there are twice as many tokens as sink_tables have blocks, the first half is what both halves see of the blocks before."""
    sink_k, sink_v = sink

    def attend(q_BTHd: torch.Tensor, k_BTHd: torch.Tensor, v_BTHd: torch.Tensor) -> torch.Tensor:
        q, k = rotate(q_BTHd, table), rotate(k_BTHd, table)
        out = []
        for i in range(k.shape[1] // block_tokens):
            b = i % len(sink_tables)
            before = slice(max(0, b + 1 - window_blocks) * block_tokens, b * block_tokens)
            own = slice(i * block_tokens, (i + 1) * block_tokens)
            keys = torch.cat([k[:, before], k[:, own], rotate(sink_k, sink_tables[b])], dim=1)
            values = torch.cat([v_BTHd[:, before], v_BTHd[:, own], sink_v], dim=1)
            out.append(cross(q[:, own], keys, values))
        return torch.cat(out, dim=1)

    return attend


def region_weight(h: int, w: int, mouth: float = 4.0, eyes: float = 3.0) -> torch.Tensor:
    """Loss weight [h, w] on the latent grid: 1, more over the mouth and the eyes, which fill few cells but carry the face."""
    weight = torch.ones(h, w)
    for box, gain in ((eyes_box(8 * h), eyes), (mouth_box(8 * h), mouth)):
        top, bottom, left, right = (round(v / 8) for v in box)
        weight[top:bottom, left:right] = gain
    return weight / weight.mean()


def window_loss(
    model: WindowModel, window: Window, weight_hw: torch.Tensor, generator: torch.Generator, correlation: float = 0.0
) -> torch.Tensor:
    """Weighted mean squared velocity error; the target is noise - x0."""
    x0 = window.x0_B16Fhw
    noise = draw_noise(x0.shape, generator, correlation).to(x0)
    n = model.dit.cfg.block_frames
    sigma = window.sigma_Bn.repeat_interleave(n, dim=1)[:, None, :, None, None]
    v = model((1 - sigma) * x0 + sigma * noise, window)
    return (weight_hw * (v.float() - (noise - x0)).square()).mean()
