"""The roles of Live Avatar, and the names of the tensors that travel with its blocks."""

from __future__ import annotations

import torch

from everface.core.errors import BadInput
from everface.runtime.messages import Tensors
from everface.runtime.model import RoleSpec

CLEAN = "clean"  # out of a shot's first block: its first latent, the attention sink from the shot's fifth block on
SINK = "sink"  # into a block: a new reference latent
SHOT = "shot"  # into the first block of a shot: its number by its length; blocks before it are no longer attended to, nor decoded on
DISSOLVE = "dissolve"  # with it: [1 + frames] in which the last frame before the cut fades out; again its length counts
FORWARDS = "forwards"  # into a block: [forwards] of this block and the ones after it; its length counts, so that no device is waited for
SPEAKERS = "speakers"  # of an opening: [A, 1, P, 1], the tokens of each speaker, where there are several
POSE = "pose"  # into a block of a model with motion: [C, F, 1, 1] for the whole image, or [C, F, h, w]
IMAGE = "image"  # of an opening, a change or a cut of a model with motion: [3, H, W] uint8, what it shows
SURROUND = "surround"  # with it, where the model makes a region only: [C, 2, h, w], the whole image's first latent, and that of a still video of it
HEAD = "head"  # with it: [10, T], how the head and the lips move in the decoded frames; for one person only
FINITE = "finite"  # uint8 [roles so far]: 1 where everything that the role computed was finite
DECODE = "decode"
DECODE_COST = 0.6  # of a denoising step's


def role_specs(steps: int) -> tuple[RoleSpec, ...]:
    """step0 .. step{steps-1}, then the decoder. Raises BadInput."""
    if steps < 1:
        raise BadInput(f"a pipeline of {steps} denoising steps does nothing: use 3 or 4")
    return (*(RoleSpec(f"step{i}") for i in range(steps)), RoleSpec(DECODE, DECODE_COST, own_thread=True))


def shot_tensor(number: int) -> torch.Tensor:
    """What tells this shot from its neighbors."""
    return torch.zeros(1 + number % 64, dtype=torch.uint8)


def not_finite(outputs: Tensors) -> str | None:
    """Which role returned values that are not finite, if one did."""
    finite = outputs.get(FINITE)
    if finite is None or bool(finite.all()):
        return None
    return f"role {int((finite == 0).nonzero()[0])} of the pipeline returned values that are not finite"
