"""Placement: which roles (denoising steps and the decoder) live on which device, in the order a block meets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise

from everface.core.errors import BadInput

DECODE = "decode"
MOST_DEVICES = 8  # of one pipeline: seven steps and the decoder
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


def partitions(roles: tuple[str, ...], devices: int) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Every way to cut the roles into so many devices, none of them idle, in the order a block meets them."""
    for cuts in combinations(range(1, len(roles)), devices - 1):
        edges = (0, *cuts, len(roles))
        yield tuple(roles[a:b] for a, b in pairwise(edges))


def place(steps: int, placement: str | int, costs: Mapping[str, float] | None = None) -> Plan:
    """The contiguous partition of the roles whose slowest device is fastest; among equals the earlier devices are lighter.

    `placement`: "inline", or a number of processes, 1 to 8 but no more than there are roles. `costs`: time per block of a role, in any unit; a role not named
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
    most = min(MOST_DEVICES, len(roles))
    allowed = [str(n) for n in range(1, most + 1)]
    if str(placement) not in allowed:
        more = f"; more than {most} devices take a second pipeline" if str(placement).isdecimal() and int(placement) > most else ""
        raise BadInput(
            f"placement {placement!r} is impossible with {len(roles)} roles: choose one of inline, {', '.join(allowed)}{more}"
        )

    def loads(devices: tuple[tuple[str, ...], ...]) -> tuple[float, ...]:
        return tuple(round(sum(cost[role] for role in device), 9) for device in devices)

    return Plan(min(partitions(roles, int(placement)), key=lambda devices: (max(loads(devices)), loads(devices))))
