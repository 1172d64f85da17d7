"""Placement: which roles run on which device, in the order in which a block meets them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from everface.core.errors import BadInput
from everface.runtime.model import RoleSpec

MOST_DEVICES = 8  # of one pipeline
HOSTS = r"(\d)\+([1-9])@\[?([\w.:-]+?)\]?:(\d{1,5})"  # of a placement: processes here, on other hosts, and where these join

Devices = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Placement:
    """Roles of each device, upstream first. `inline`: the one device is the caller's own process, where `threads` run the roles.

    The last `remote` devices are of other hosts, which join at `address`, a host's name and a port.
    """

    devices: Devices
    inline: bool = False
    threads: Devices = ()
    remote: int = 0
    address: tuple[str, int] = ("", 0)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for device in self.devices for role in device)


def partitions(roles: Sequence[str], devices: int) -> Iterator[Devices]:
    """Every way to cut the roles into so many devices, none of them idle, in the order in which a block meets them."""
    for cuts in combinations(range(1, len(roles)), devices - 1):
        edges = (0, *cuts, len(roles))
        yield tuple(tuple(roles[a:b]) for a, b in pairwise(edges))


def place(roles: Sequence[RoleSpec], placement: str | int) -> Placement:
    """The contiguous partition of the roles whose slowest device is fastest; among equals the earlier devices are lighter.

    `placement`: "inline", or a number of processes, 1 to 8 but no more than there are roles; "2+3@HOST:PORT" are two here, and three of
    other hosts, which join at that address of this one. Raises BadInput for a placement that is
    impossible, or costs that are not positive.
    """
    names, costs = tuple(role.name for role in roles), {role.name: role.cost for role in roles}
    if not roles or len(costs) != len(roles) or not all(0 < cost < float("inf") for cost in costs.values()):
        raise BadInput(f"roles {costs} cannot be placed: give each a name of its own and a positive cost")
    if placement == "inline":
        return Placement((names,), inline=True, threads=_threads(roles))
    most = min(MOST_DEVICES, len(roles))
    if hosts := re.fullmatch(HOSTS, str(placement)):
        here, remote = int(hosts[1]), int(hosts[2])
        return replace(place(roles, here + remote), remote=remote, address=(hosts[3], int(hosts[4])))
    allowed = [str(n) for n in range(1, most + 1)]
    if str(placement) not in allowed:
        more = f"; more than {most} devices take a second pipeline" if str(placement).isdecimal() and int(placement) > most else ""
        raise BadInput(
            f"placement {placement!r} is impossible with {len(roles)} roles: choose one of inline, {', '.join(allowed)}{more}"
        )

    def loads(devices: Devices) -> tuple[float, ...]:
        return tuple(round(sum(costs[role] for role in device), 9) for device in devices)

    return Placement(min(partitions(names, int(placement)), key=lambda devices: (max(loads(devices)), loads(devices))))


def _threads(roles: Sequence[RoleSpec]) -> Devices:
    """The roles of each thread of an inline pipeline."""
    threads: list[list[str]] = []
    for role in roles:
        if role.own_thread or not threads:
            threads.append([])
        threads[-1].append(role.name)
    return tuple(tuple(thread) for thread in threads)
