"""Three-dimensional rotary positions: int64 positions in, a table of (cos, sin) out. No limit, nothing stored.

A head of width d has c = d/2 complex pairs: c - 2*(c//3) for time, c//3 for rows, c//3 for columns. Pair j of an axis
with m pairs turns by position * 10000^(-j/m). Angles are float64; the table is float32 [tokens, c, 2], made once a forward.
Tokens are in (frame, row, column) order, column fastest.

fp16=True rounds every cos and sin to float16, as the official code does by accident.

Positions of time may be integers or int64 tensors of no dimension: nothing here reads a tensor's value, so that a captured forward
computes its tables from positions in its inputs.
"""

from __future__ import annotations

import torch

SINK_TIME = 30  # time position of the reference while the sink is filled, and its smallest
Time = int | torch.Tensor


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Complex pairs of the time, row and column axes: 22, 21, 21 for the released width 128."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def spaced_positions(full: int, count: int) -> torch.Tensor:
    """`count` positions from 0 to full-1, truncated to integers: positions of pooled motion tokens on the full grid."""
    return torch.arange(count) * (full - 1) // max(count - 1, 1)


def frequencies(pairs: int, device: torch.device | None = None) -> torch.Tensor:
    """Angle per position for each pair of an axis, float64 [pairs]."""
    return 10000.0 ** (-torch.arange(pairs, dtype=torch.float64, device=device) / pairs)


def axis_table(position: torch.Tensor, angle_m: torch.Tensor, fp16: bool) -> torch.Tensor:
    """(cos, sin) [positions, m, 2] of one axis whose `frequencies` are given."""
    angle = position[:, None] * angle_m
    table = torch.stack((angle.cos(), angle.sin()), dim=-1)
    return (table.half() if fp16 else table).float()


def grid_table(
    time_F: torch.Tensor, row_R: torch.Tensor, col_C: torch.Tensor, head_dim: int, *, fp16: bool = False
) -> torch.Tensor:
    """Table [F*R*C, head_dim/2, 2] of a box of tokens at these int64 positions, which may be negative."""
    pairs, at = axis_pairs(head_dim), (time_F, row_R, col_C)
    axes = [axis_table(p, frequencies(m, p.device), fp16) for p, m in zip(at, pairs, strict=True)]
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
    parts = [torch.empty(0, head_dim // 2, 2, device=device)]
    for times, factor in pooled:
        rows, cols = (spaced_positions(n, n // factor).to(device) for n in grid)
        parts.append(grid_table(torch.tensor(times, device=device), rows, cols, head_dim, fp16=fp16))
    return torch.cat(parts)


def sink_time(first_frame: int, distance: int) -> int:
    """Time position of the reference while the block that starts at `first_frame` is made: it rolls ahead of the block."""
    return max(SINK_TIME, first_frame + distance)


class Rope:
    """The rotations of one size of video. Only time changes: rows, columns and motion tokens have constant tables.

    `block(first)` is frames_table(first, ...); `sink(time)` is that of one frame there, then the motion tokens.
    """

    def __init__(
        self, frames: int, grid: tuple[int, int], head_dim: int, pooled: list[tuple[tuple[int, ...], int]], *, fp16: bool = False,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        pairs, self.fp16 = axis_pairs(head_dim)[0], fp16
        self.steps_F = torch.arange(frames, device=device)
        self.angle_m = frequencies(pairs, device)
        self.space_1P = frames_table(0, 1, grid, head_dim, fp16=fp16, device=device)[None, :, pairs:]
        self.motion = motion_table(grid, pooled, head_dim, fp16=fp16, device=device)

    def block(self, first: Time) -> torch.Tensor:
        """Table [F*P, head_dim/2, 2] of the frames from `first` on."""
        return self._frames(self.steps_F + first)

    def sink(self, time: Time) -> torch.Tensor:
        """Table of the sink tokens with the reference at `time`."""
        return torch.cat((self._frames(self.steps_F[:1] + time), self.motion))

    def _frames(self, time_F: torch.Tensor) -> torch.Tensor:
        turned_F1m2 = axis_table(time_F, self.angle_m, self.fp16)[:, None]
        size = (len(time_F), self.space_1P.shape[1], -1, 2)
        return torch.cat((turned_F1m2.expand(size), self.space_1P.expand(size)), dim=2).flatten(0, 1)
