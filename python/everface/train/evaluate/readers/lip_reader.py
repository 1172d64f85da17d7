"""A small CNN that reads mouth opening, mouth width and blink from frames of drawn characters.

It is trained on new renders only, never on generated frames. They are blurred and noised, so that it can read what a VAE or a sampler blurs.
It is trusted only after a check (`MIN_CORRELATION`): on true videos of held-out characters, opening correlation >= 0.97 for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everface.core.log import log
from everface.train.data.clips import IMAGE_SIZE
from everface.train.synthetic.characters import eyes_box, mouth_box, render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.parameters import ANIMATION

MIN_CORRELATION = 0.97
MOUTH_HW, EYES_HW = (48, 64), (24, 48)
LIPS_WEIGHT = (1.0, 0.6, 0.5)  # of the errors of opening, width and blink
SHORTEST = 10  # steps of a schedule that has a rise and a fall
Reader = TypeVar("Reader", bound=nn.Module)


class LipReader(nn.Module):
    """About 140 k parameters: four strided convolutions on the mouth box, three on the eyes box, a small head for each.

    fine: five on a mouth box of twice as many pixels and of one contrast, for rendered people, whose mouths differ by less than drawn ones, and some of whom
    stand in the dark.
    """

    def __init__(self, fine: bool = False) -> None:
        super().__init__()
        self.fine = fine
        self.mouth_hw = (2 * MOUTH_HW[0], 2 * MOUTH_HW[1]) if fine else MOUTH_HW
        self.mouth = nn.Sequential(
            _conv(3, 16),
            _conv(16, 32),
            _conv(32, 48),
            _conv(48, 64),
            *([_conv(64, 64)] if fine else []),
            nn.Flatten(),
            nn.Linear(64 * 12, 96),
            nn.SiLU(),
            nn.Linear(96, 2),
        )
        self.eyes = nn.Sequential(
            _conv(3, 12), _conv(12, 16), _conv(16, 24), nn.Flatten(), nn.Linear(24 * 18, 32), nn.SiLU(), nn.Linear(32, 1)
        )

    def forward(self, rgb_N3HW: Tensor) -> Tensor:
        """Frames in -1..1 of any size to readings_N3: open, wide, blink (nominally 0..1)."""
        size = rgb_N3HW.shape[-1]
        mouth = _crop(rgb_N3HW, mouth_box(size), self.mouth_hw)
        eyes = _crop(rgb_N3HW, eyes_box(size), EYES_HW)
        if self.fine:
            mouth, eyes = _even(mouth), _even(eyes)
        return torch.cat([self.mouth(mouth), self.eyes(eyes)], 1)

    @torch.no_grad()
    def read(self, rgb_T3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A clip in -1..1 to open_T, wide_T, blink_T."""
        readings_T3 = torch.cat([self(part) for part in rgb_T3HW.split(64)])
        return readings_T3[:, 0], readings_T3[:, 1], readings_T3[:, 2]


def _conv(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.SiLU())


def _crop(rgb_N3HW: Tensor, box: tuple[int, int, int, int], size_HW: tuple[int, int]) -> Tensor:
    top, bottom, left, right = box
    crop = rgb_N3HW[..., top:bottom, left:right]
    if crop.shape[-2:] == size_HW:
        return crop
    return F.interpolate(crop, size_HW, mode="bilinear", align_corners=False, antialias=True)


def _even(rgb_N3HW: Tensor) -> Tensor:
    """The same contrast for all."""
    spread, mean = torch.std_mean(rgb_N3HW, (1, 2, 3), keepdim=True)
    return 0.5 * (rgb_N3HW - mean) / (spread + 0.03)


def random_poses(n: int, generator: torch.Generator) -> Tensor:
    """Poses over the range of speech and motion, with shut mouths and open eyes more often. Returns anim_NA."""
    anim_NA = torch.rand(n, len(ANIMATION), generator=generator)
    anim_NA[:, 0] = (anim_NA[:, 0] * 1.25 - 0.2).clamp(0, 1)
    anim_NA[:, 2] = (anim_NA[:, 2] * 2.0 - 1.0).clamp(0, 1)
    anim_NA[:, 4:] = (anim_NA[:, 4:] - 0.5) * torch.tensor([0.11, 0.08, 0.13])
    return anim_NA


def degrade(rgb_N3HW: Tensor, generator: torch.Generator) -> Tensor:
    """What a VAE or a sampler of few steps does to a frame: blur, fine and coarse noise, a color cast, a shift of up to 2 px. Frames and
    generator are on one device."""

    def rand() -> float:
        return torch.rand(1, generator=generator, device=generator.device).item()

    N, _, H, W = rgb_N3HW.shape
    if rand() < 0.6:
        scale = 0.35 + 0.6 * rand()
        small = F.interpolate(rgb_N3HW, scale_factor=scale, mode="bilinear", align_corners=False, antialias=True)
        rgb_N3HW = F.interpolate(small, (H, W), mode="bilinear", align_corners=False)
    coarse = F.interpolate(torch.randn(N, 3, H // 8, W // 8, generator=generator, device=generator.device), (H, W), mode="bilinear", align_corners=False)
    fine = torch.randn(N, 3, H, W, generator=generator, device=generator.device)
    tint = 0.05 * torch.randn(N, 3, 1, 1, generator=generator, device=generator.device)
    shift = [int(5 * rand()) - 2 for _ in range(2)]
    return (rgb_N3HW + 0.10 * rand() * coarse + 0.08 * rand() * fine + tint).roll(shift, (2, 3)).clamp(-1, 1)


def train_lip_reader(seed: int = 0, iterations: int = 900, size: int = IMAGE_SIZE, batch: int = 48) -> LipReader:
    """Train on new characters, poses and degradations; about 90 s on two idle cores. Repeatable on one machine."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        id_NP, anim_NA = sample_identity(batch, generator), random_poses(batch, generator)
        return render(id_NP, anim_NA, size), anim_NA[:, :3]

    return fit_reader(LipReader, draw, LIPS_WEIGHT, iterations, generator, seed)


def fit_reader(
    kind: Callable[[], Reader], draw: Callable[[], tuple[Tensor, Tensor]], weight_3: tuple[float, ...], iterations: int, generator: torch.Generator, seed: int,
    pairs: float = 0.0,
) -> Reader:  # fmt: skip
    """A reader, new or what kind() gives, trained to read targets_N3 from degraded frames; draw() gives (true frames in -1..1, targets) on the generator's device.

    pairs: where frames 2n and 2n + 1 are of one person, the weight of the error of the difference between their readings, so that the reader learns
    what moves in a face, and not only how faces differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = kind().to(generator.device)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(iterations, SHORTEST), pct_start=0.15)
    weight = torch.tensor(weight_3, device=generator.device)
    for i in range(iterations):
        with torch.no_grad():
            clean_N3HW, target_N3 = draw()
            rgb_N3HW = torch.cat([degrade(part, generator) for part in clean_N3HW.split(12)])
        error_N3 = reader(rgb_N3HW) - target_N3
        loss = (error_N3.square() * weight).mean()
        if pairs:
            loss = loss + pairs * ((error_N3[::2] - error_N3[1::2]).square() * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (i + 1) % 100 == 0:
            log.info("reader of %d outputs, %d/%d: loss %.5f", len(weight_3), i + 1, iterations, loss.item())
    return reader.eval()
