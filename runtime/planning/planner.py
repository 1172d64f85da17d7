"""Chooses a placement: every cut of the roles into devices, its forecast, and its memory against that of the devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from everface.core.errors import BadInput
from everface.runtime.planning.forecast import Forecast, Times, simulate
from everface.runtime.planning.placement import MOST_DEVICES, Placement, partitions

GIB = 2**30

Memory = Callable[[Sequence[str], int, bool], dict[str, int]]
"""Bytes by name that a device with these roles holds for so many sessions; the flag: it is the first device, beside the caller."""


@dataclass(frozen=True)
class Option:
    """A placement, its forecast, and what each of its devices holds in GiB."""

    placement: Placement
    forecast: Forecast
    memory_gib: tuple[float, ...]
    limits_gib: tuple[float, ...]

    @property
    def fits(self) -> bool:
        return all(m <= limit for m, limit in zip(self.memory_gib, self.limits_gib))

    @property
    def rank(self) -> tuple[float, int, int]:
        """Smaller is better: rate in tenths of a frame, then first frame in milliseconds, then devices."""
        return -round(self.forecast.fps, 1), round(self.forecast.first_frame_ms), len(self.placement.devices)

    def shape(self) -> str:
        return " | ".join("+".join(roles) for roles in self.placement.devices)

    def fullest(self) -> int:
        """The device whose memory is shortest."""
        return max(range(len(self.memory_gib)), key=lambda i: self.memory_gib[i] - self.limits_gib[i])


def options(roles: Sequence[str], limits_gib: Sequence[float], memory: Memory, times: Times, sessions: int = 1) -> list[Option]:
    """Every placement on the first n of these devices, in their order, for every n."""
    if not limits_gib or min(limits_gib) <= 0 or len(limits_gib) > MOST_DEVICES:
        raise BadInput(f"a pipeline has 1 to {MOST_DEVICES} devices with memory, not {list(limits_gib)}")
    found: list[Option] = []
    for count in range(1, min(len(limits_gib), len(roles)) + 1):
        for devices in partitions(roles, count):
            held = [sum(memory(device, sessions, not i).values()) / GIB for i, device in enumerate(devices)]
            placement = Placement(devices)
            forecast = simulate(placement, times, sessions=sessions)
            found.append(Option(placement, forecast, tuple(held), tuple(limits_gib[:count])))
    return found


def best(found: Sequence[Option]) -> Option | None:
    """The fastest placement that fits; of equal ones the one with the earlier first frame, then with fewer devices."""
    return min((option for option in found if option.fits), key=lambda option: option.rank, default=None)


def explain(chosen: Option, found: Sequence[Option], times: Times) -> str:
    """Why it was chosen, in a sentence."""
    devices = chosen.placement.devices
    work_ms = [times.device_ms(device) + times.device_rest_ms(device) for device in devices]
    slowest = max(range(len(devices)), key=lambda i: work_ms[i])
    words = f"{'+'.join(devices[slowest])} takes {work_ms[slowest]:.0f} ms a block, and no other cut that fits is faster"
    better = min(found, key=lambda option: option.rank)
    if better.rank < chosen.rank:
        device = better.fullest()
        words += f"; {better.shape()} would be, but needs {better.memory_gib[device]:.1f} of {better.limits_gib[device]:.1f} GiB"
    most = max(len(option.placement.devices) for option in found)
    if len(devices) < most:
        words += f"; {most} devices would do no better"
    return words


def refuse(found: Sequence[Option], memory: Memory, sessions: int) -> BadInput:
    """Nothing fits: the placement that comes closest, with its arithmetic."""
    closest = min(found, key=lambda option: max(m - limit for m, limit in zip(option.memory_gib, option.limits_gib)))
    device = closest.fullest()
    most = max(len(option.placement.devices) for option in found)
    roles = closest.placement.devices[device]
    parts = memory(roles, sessions, not device)
    arithmetic = " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return BadInput(
        f"nothing fits on up to {most} devices: the closest needs {closest.memory_gib[device]:.1f} GiB "
        f"for {'+'.join(roles)} where there are {closest.limits_gib[device]:.1f} ({arithmetic}); "
        "take more devices, 8-bit weights, fewer sessions or a smaller image"
    )
