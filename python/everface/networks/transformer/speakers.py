"""Which tokens of a frame each of several speakers' audio reaches."""

from __future__ import annotations

import torch

from everface.core.errors import BadInput
from everface.core.regions import Box


def token_masks(regions: tuple[Box, ...], grid: tuple[int, int]) -> torch.Tensor:
    """Masks [A, 1, P, 1] float32 of tokens (rows, columns) for `AudioInjector.stream`: 1 where no other speaker is, as upstream masks.

    A token is where its center is. So tokens in no region get the audio of all speakers. Raises BadInput for a region without a token.
    """
    rows, columns = grid
    y_R1 = ((torch.arange(rows) + 0.5) / rows)[:, None]
    x_C = (torch.arange(columns) + 0.5) / columns
    inside_AP = torch.stack([((y_R1 >= y0) & (y_R1 < y1) & (x_C >= x0) & (x_C < x1)).flatten() for x0, y0, x1, y1 in regions])
    if not inside_AP.any(1).all():
        raise BadInput(f"the region of a speaker is smaller than one of the {columns}x{rows} tokens of a frame: make it larger, or the video")
    alone_AP = inside_AP.sum(0) - inside_AP.int() == 0
    return alone_AP.float()[:, None, :, None]
