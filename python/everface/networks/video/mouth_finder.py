"""Where the mouth of an image is: a few convolutions on 64x64 pixels, whose answer is the mean place of a map. The decoder widens the mouth about it.

Trained on rendered people (`train.heads.mouth_finder`). Legend: N images, H, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILE = "mouth_finder.safetensors"  # beside the weights
SIDE = 64  # pixels that it looks at
LEAST, MOST = (-0.3, 0.1), (0.3, 0.7)  # (right, down) in halves of the image: where a mouth can be in images that the weights know
WIDTHS = (16, 32, 32)


class MouthFinder(nn.Module):
    """Float32. Thread-safe after loading."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, *WIDTHS)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2 if n < 2 else 1, padding=1) for n, (a, b) in enumerate(zip(sizes, WIDTHS, strict=False)))
        self.out = nn.Conv2d(WIDTHS[-1], 1, 5, padding=2)

    def forward(self, rgb_N3HW: Tensor) -> Tensor:
        """Images of any size in -1..1 -> [N, 2], the mouth's middle (right, down) in halves of the image, not further out than LEAST and MOST."""
        x = F.interpolate(rgb_N3HW.float(), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        for conv in self.convs:
            x = F.gelu(conv(x))
        map_Nhw = self.out(x).flatten(1).softmax(1).view(len(x), *x.shape[-2:])
        at = ((torch.arange(side, device=x.device) + 0.5) / side * 2 - 1 for side in map_Nhw.shape[1:])
        down_h, right_w = at
        place_N2 = torch.stack([map_Nhw.sum(1) @ right_w, map_Nhw.sum(2) @ down_h], 1)
        return place_N2.clamp(torch.tensor(LEAST, device=x.device), torch.tensor(MOST, device=x.device))
