"""The transformer over a whole window with gradients: the trainer's counterpart of the runtime's denoising step.

Attention is full inside a block and causal between blocks, with the window, sink and positions of the runtime: block b sees itself, the
three blocks before it, and the sink. The reference in the sink is 4 to 30 latent frames ahead of the block.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from everface.kernels.attention.cross import cross
from everface.kernels.fused.norm_rope import rotate
from everface.networks.motion import split_pose
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.layers import KV, Attend
from everface.networks.transformer.rope import frames_table, sink_time
from everface.train.engine.sharding import gather_before_gradients
from everface.train.pretrain.noise import draw_noise
from everface.train.pretrain.windows import TrainingWindow

LEVEL_TOLERANCE = 1e-4  # between levels of a sampler


class WindowModel(nn.Module):
    """Velocity of a window.

    `bidirectional`: every block sees the whole window, and the reference is ahead of all of it, as for the teacher.
    `checkpoint_activations`: recompute the transformer's blocks in the backward pass.
    """

    def __init__(self, dit: DiT, bidirectional: bool = False, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.dit, self.bidirectional, self.checkpoint_activations = dit, bidirectional, checkpoint_activations

    def forward(self, x_B16Fhw: torch.Tensor, window: TrainingWindow) -> torch.Tensor:
        """Velocity [B, 16, F, h, w] of the noised window. The residual stream stays float32 under autocast.

        A window with a past goes through twice at once: as that past, and noised, where each block sees the past blocks before it.
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
        features_BLCF, pose = split_pose(window.features_BLCF, cfg.audio_dim)
        if pose is not None and twice:
            pose = pose.repeat(1, 1, 2, 1, 1)
        x = dit.embed_patches(x_B16Fhw, pose).float()  # before anything else: FSDP2 needs a method of the root to run first
        time = dit.time(sigma_BF * 1000)
        text_kv = dit.text_kv(dit.embed_text(torch.zeros(1, cfg.text_dim, device=device)))
        local, glob = dit.casual_audio_encoder.encode_blocks(features_BLCF)
        if twice:
            local, glob = local.repeat(1, 2, 1, 1), glob.repeat(1, 2, 1)
        sink = dit.prefill(window.reference_B16_1hw, window.motion_B16Thw, text_kv)
        places = [sink_time(window.first_frame + n * b, d) for b, d in enumerate(window.sink_distances)]
        sink_tables = [dit.sink_table(grid, place) for place in (places[-1:] if self.bidirectional else places)]
        for layer, block in enumerate(dit.blocks):
            gather_before_gradients(block, sink[layer])
            if self.bidirectional:
                attend = full_attention(table, sink_tables[0], sink[layer])
            else:
                attend = causal_attention(table, sink_tables, sink[layer], block_tokens, cfg.window_blocks)
            given = (x, time.e0_6D, text_kv[layer], attend)
            x = checkpoint(block, *given, use_reentrant=False) if self.checkpoint_activations else block(*given)
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
    """Each block over [the blocks before it that a ring would hold, itself, the sink], by slices: exact, and cheaper than a mask. The sink
    is rotated for every block, because the reference moves ahead of it.

    Where there are twice as many tokens as sink_tables has blocks, both halves see the first half's blocks before them."""
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


def window_loss(
    model: WindowModel, window: TrainingWindow, weight_hw: torch.Tensor, generator: torch.Generator, correlation: float = 0.0
) -> torch.Tensor:
    """Weighted mean squared error of the velocity that leads to x0; from noised truth it is noise - x0."""
    x0 = window.x0_B16Fhw
    noise = draw_noise(x0.shape, generator, correlation).to(x0)
    n = model.dit.cfg.block_frames
    sigma = window.sigma_Bn.repeat_interleave(n, dim=1)[:, None, :, None, None]
    x = (1 - sigma) * x0 + sigma * noise
    if window.own_B is not None and window.own_B.any():
        x = torch.where(window.own_B[:, None, None, None, None], own_steps(model, noise, window), x)
    v = model(x, window)
    return (weight_hw * (v.float() - (x - x0) / sigma).square()).mean()


@torch.no_grad()
def own_steps(model: WindowModel, noise_B16Fhw: torch.Tensor, window: TrainingWindow) -> torch.Tensor:
    """Each of the clips of `own_B` where the sampler comes from noise to its level, as a stream does: each step attends to the blocks before at its own
    level. The others as noise."""
    assert window.own_B is not None
    out, level_B = noise_B16Fhw.clone(), window.sigma_Bn[:, 0]
    for sigma, following in pairwise(window.levels):
        on_the_way = (window.own_B & (level_B < sigma - LEVEL_TOLERANCE)).nonzero()[:, 0]
        if not len(on_the_way):
            break
        x = out[on_the_way]
        out[on_the_way] = x + (following - sigma) * model(x, window.of(on_the_way, sigma)).float()
    return out
