"""Three-dimensional rotary positions: int64 positions in, a table of (cos, sin) out. No limit, nothing stored.

A head of width d has c = d/2 complex pairs: c - 2*(c//3) for time, c//3 for rows, c//3 for columns. Pair j of an axis
with m pairs turns by position * 10000^(-j/m). Angles are float64; the table is float32 [tokens, c, 2], made once a forward.
Tokens stand in (frame, row, column) order, column fastest.

fp16=True rounds every cos and sin to float16, as the official code does by accident.
"""

from __future__ import annotations

import torch

SINK_TIME = 30  # time position of the reference while the sink is filled, and the nearest it ever stands


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Complex pairs of the time, row and column axes: 22, 21, 21 for the released width 128."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def spread(full: int, count: int) -> torch.Tensor:
    """`count` positions from 0 to full-1, truncated to integers: where pooled motion tokens stand on the full grid."""
    return torch.arange(count) * (full - 1) // max(count - 1, 1)


def axis_table(position: torch.Tensor, pairs: int, fp16: bool) -> torch.Tensor:
    """(cos, sin) [positions, pairs, 2] of one axis."""
    index = torch.arange(pairs, dtype=torch.float64, device=position.device)
    angle = position.double()[:, None] * 10000.0 ** (-index / pairs)
    table = torch.stack((angle.cos(), angle.sin()), dim=-1)
    return (table.half() if fp16 else table).float()


def grid_table(
    time_F: torch.Tensor, row_R: torch.Tensor, col_C: torch.Tensor, head_dim: int, *, fp16: bool = False
) -> torch.Tensor:
    """Table [F*R*C, head_dim/2, 2] of a box of tokens at these int64 positions, which may be negative."""
    axes = [axis_table(p, m, fp16) for p, m in zip((time_F, row_R, col_C), axis_pairs(head_dim), strict=True)]
    size = (len(time_F), len(row_R), len(col_C))
    lift = (axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :])
    return torch.cat([axis.expand(*size, -1, 2) for axis in lift], dim=-2).flatten(0, 2)


def frames_table(
    first: int, frames: int, grid: tuple[int, int], head_dim: int, *, fp16: bool = False, device: torch.device | None = None
) -> torch.Tensor:
    """Table of whole latent frames first, first+1, ...: a noisy block, or the reference (one frame)."""
    time = torch.arange(first, first + frames, device=device)
    rows, cols = (torch.arange(n, device=device) for n in grid)
    return grid_table(time, rows, cols, head_dim, fp16=fp16)


def motion_table(
    grid: tuple[int, int], pooled: list[tuple[tuple[int, ...], int]], head_dim: int, *, fp16: bool = False,
    device: torch.device | None = None,
) -> torch.Tensor:  # fmt: skip
    """Table of motion tokens. `pooled` lists (times, factor): frames of a grid coarser than `grid` by that factor."""
    parts = []
    for times, factor in pooled:
        rows, cols = (spread(n, n // factor).to(device) for n in grid)
        parts.append(grid_table(torch.tensor(times, device=device), rows, cols, head_dim, fp16=fp16))
    return torch.cat(parts)


def sink_time(first_frame: int, distance: int) -> int:
    """Time position of the reference while the block that starts at `first_frame` is made: it rolls ahead of the block."""
    return max(SINK_TIME, first_frame + distance)
