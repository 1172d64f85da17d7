"""The noise levels of a denoising run, the step between two of them, and the seeded distance of the sink.

x_sigma = (1 - sigma) * clean + sigma * noise, and the model predicts v = noise - clean, so a step is
x <- x + (sigma_next - sigma) * v. No noise is added again and there is no guidance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from everface.core.config import SAMPLERS
from everface.core.errors import BadInput
from everface.kernels.fused.flow_step import flow_step

TRAIN_STEPS = 1000
MASK64 = 2**64 - 1


def sigmas(steps: int = 4, shift: float = 3.0) -> tuple[float, ...]:
    """steps + 1 noise levels from 1 to 0.

    The official schedule shifts twice: s -> shift*s / (1 + (shift-1)*s) makes the smallest level, 0.0029940 for shift 3;
    `steps` levels are spread evenly from 1 to it, and those are shifted again. Then 0.
    """

    def shifted(s: float) -> float:
        return shift * s / (1 + (shift - 1) * s)

    low = shifted(1 / TRAIN_STEPS)
    even = [1 - (1 - low) * i / max(steps - 1, 1) for i in range(steps)]
    return (*(float32(shifted(s)) for s in even), 0.0)


def float32(value: float) -> float:
    """The nearest float32: levels and timesteps are those numbers to the bit that the released model is given."""
    return float(torch.tensor(value, dtype=torch.float32))


@dataclass(frozen=True)
class Schedule:
    """`sigmas` has one more entry than `timesteps`; step s goes from sigmas[s] to sigmas[s+1] and sees timesteps[s]."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @classmethod
    def from_sigmas(cls, levels: tuple[float, ...]) -> Schedule:
        return cls(levels, tuple(float32(TRAIN_STEPS * s) for s in levels[:-1]))

    @classmethod
    def for_sampler(cls, name: str) -> Schedule:
        """official: 4 forwards. skip-null: the first 3 of them, the third going from 0.60215 straight to 0."""
        if name not in SAMPLERS:
            raise BadInput(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
        levels = sigmas()
        return cls.from_sigmas(levels if name == "official" else (*levels[:3], 0.0))

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def advance(self, x: torch.Tensor, v: torch.Tensor, step: int) -> torch.Tensor:
        """The latent after step `step`, given the velocity at its start."""
        return euler(x, v, self.sigmas[step], self.sigmas[step + 1])


def shifted_levels(steps: int = 4, shift: float = 5.0) -> tuple[float, ...]:
    """`steps` noise levels from 1 down, spread evenly over 1..0 without the 0, then shifted. LiveTalk's, with shift 5."""
    return tuple(shift * s / (1 + (shift - 1) * s) for s in (1 - i / steps for i in range(steps)))


@dataclass(frozen=True)
class RenoiseSchedule:
    """Every step goes to clean latents, and, but for the last, from there with fresh noise to the next level. Step s begins at sigmas[s] and
    sees timesteps[s], which the released model was given in bfloat16."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @classmethod
    def of_steps(cls, steps: int = 4, shift: float = 5.0) -> RenoiseSchedule:
        levels = shifted_levels(steps, shift)
        return cls(levels, tuple(float(torch.tensor(TRAIN_STEPS * s, dtype=torch.float64).bfloat16()) for s in levels))

    def renoise(self, clean: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        """What step `step` begins with, in the dtype of `clean`, from float32 noise of that shape."""
        sigma = self.sigmas[step]
        return ((1 - sigma) * clean.float() + sigma * noise.float()).to(clean.dtype)


def euler(x: torch.Tensor, v: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """x + (sigma_next - sigma) * v in float32, in the dtype of x."""
    return flow_step(x, v, sigma, sigma_next)


def sink_distance(seed: int, block: int, step: int) -> int:
    """Latent frames from the block to the reference ahead of it: 4..30, uniform, a function of (seed, block, step)."""
    state = 0
    for word in (seed, block, step):
        state = splitmix64(state ^ word)
    return 4 + state % 27


def splitmix64(state: int) -> int:
    """One step of the splitmix64 generator: a 64-bit mix in which every input bit reaches every output bit."""
    state = (state + 0x9E3779B97F4A7C15) & MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
    return state ^ (state >> 31)
