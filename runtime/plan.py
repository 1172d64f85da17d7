"""Placement: which roles (denoising steps and the decoder) live on which device, in the order a block meets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise

from everface.core.errors import BadInput

DECODE = "decode"
MOST_DEVICES = 5
STEP_COST = 1.0  # one denoising forward; only the ratio to DECODE_COST matters
DECODE_COST = 0.6


@dataclass(frozen=True)
class Plan:
    """Roles of each device, upstream first. `inline`: the one device is the caller's own process."""

    devices: tuple[tuple[str, ...], ...]
    inline: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for device in self.devices for role in device)


def roles_of(steps: int) -> tuple[str, ...]:
    """step0 .. step{steps-1}, then the decoder."""
    return (*(f"step{i}" for i in range(steps)), DECODE)


def place(steps: int, placement: str | int, costs: Mapping[str, float] | None = None) -> Plan:
    """The contiguous partition of the roles whose slowest device is fastest; among equals the earlier devices are lighter.

    `placement`: "inline", or a number of processes 1..5. `costs`: time per block of a role, in any unit; a role not named
    costs 1.0 as a step and 0.6 as the decoder. Raises BadInput for a placement or cost that cannot be used.
    """
    if steps < 1:
        raise BadInput(f"a pipeline of {steps} denoising steps does nothing: use 3 or 4")
    roles = roles_of(steps)
    cost = {role: DECODE_COST if role == DECODE else STEP_COST for role in roles}
    cost.update(costs or {})
    if set(cost) != set(roles) or not all(0 < c < float("inf") for c in cost.values()):
        raise BadInput(f"costs {dict(costs or {})} cannot be used: give positive numbers for some of {', '.join(roles)}")
    if placement == "inline":
        return Plan((roles,), inline=True)
    allowed = [str(n) for n in range(1, min(MOST_DEVICES, len(roles)) + 1)]
    if str(placement) not in allowed:
        raise BadInput(f"placement {placement!r} is impossible with {len(roles)} roles: choose one of inline, {', '.join(allowed)}")

    def loads(cuts: tuple[int, ...]) -> tuple[float, ...]:
        edges = (0, *cuts, len(roles))
        return tuple(round(sum(cost[r] for r in roles[a:b]), 9) for a, b in pairwise(edges))

    best = min(combinations(range(1, len(roles)), int(placement) - 1), key=lambda cuts: (max(loads(cuts)), loads(cuts)))
    edges = (0, *best, len(roles))
    return Plan(tuple(roles[a:b] for a, b in pairwise(edges)))
