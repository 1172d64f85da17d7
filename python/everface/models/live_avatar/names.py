"""The roles of Live Avatar, and the names of the tensors that travel with its blocks."""

from __future__ import annotations

from everface.core.errors import BadInput
from everface.runtime.messages import Tensors
from everface.runtime.model import RoleSpec

CLEAN = "clean"  # out of block 0: its first latent, the attention sink from block 4 on
SINK = "sink"  # into a block: a new reference latent
FORWARDS = "forwards"  # into a block: [forwards] of this block and the ones after it; its length counts, so that no device is waited for
SPEAKERS = "speakers"  # of an opening: [A, 1, P, 1], the tokens of each speaker, where there are several
FINITE = "finite"  # uint8 [roles so far]: 1 where everything that the role computed was finite
DECODE = "decode"
DECODE_COST = 0.6  # of a denoising step's


def role_specs(steps: int) -> tuple[RoleSpec, ...]:
    """step0 .. step{steps-1}, then the decoder. Raises BadInput."""
    if steps < 1:
        raise BadInput(f"a pipeline of {steps} denoising steps does nothing: use 3 or 4")
    return (*(RoleSpec(f"step{i}") for i in range(steps)), RoleSpec(DECODE, DECODE_COST, own_thread=True))


def not_finite(outputs: Tensors) -> str | None:
    """Which role returned values that are not finite, if one did."""
    finite = outputs.get(FINITE)
    if finite is None or bool(finite.all()):
        return None
    return f"role {int((finite == 0).nonzero()[0])} of the pipeline returned values that are not finite"
