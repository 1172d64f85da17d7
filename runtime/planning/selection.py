"""Which placement to run: every cut of the roles into devices, foretold by the simulator, held against the devices' memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everface.core.errors import BadInput
from everface.runtime.planning.placement import DECODE, MOST_DEVICES, Plan, partitions, roles_of
from everface.runtime.planning.forecast import Forecast, Times, simulate

GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """Bytes of device memory. What has no session in its name is taken once, whatever the sessions."""

    process: int  # of any process on a device: the CUDA context, its libraries, what an allocator cannot use
    weights: int  # of the transformer, on a device with steps, however many
    step_work: int  # what a forward has in hand
    session_ring: int  # keys and values of one step
    session_sink: int  # keys and values of picture and prompt, on a device with steps
    decoder: int  # its weights
    decode_work: int
    session_decode: int  # what its convolutions remember
    front: int  # the session's own process, beside the first device's roles

    def of(self, roles: Sequence[str], sessions: int, first: bool) -> dict[str, int]:
        """What a device with these roles holds, by name."""
        steps = sum(role != DECODE for role in roles)
        parts = {"process": self.process}
        if steps:
            parts |= {"weights": self.weights, "forward": self.step_work, "sink": sessions * self.session_sink}
            parts[f"{steps * sessions} KV rings"] = steps * sessions * self.session_ring
        if DECODE in roles:
            parts |= {"decoder": self.decoder + self.decode_work, "decoder streams": sessions * self.session_decode}
        if first:
            parts["session process"] = self.front
        return parts


@dataclass(frozen=True)
class Option:
    """A placement, what it is foretold to do, and what each of its devices holds in GiB."""

    plan: Plan
    forecast: Forecast
    memory_gib: tuple[float, ...]
    limits_gib: tuple[float, ...]

    @property
    def fits(self) -> bool:
        return all(m <= limit for m, limit in zip(self.memory_gib, self.limits_gib))

    @property
    def rank(self) -> tuple[float, int, int]:
        """Smaller is better: rate in tenths of a frame, then first frame in milliseconds, then devices."""
        return -round(self.forecast.fps, 1), round(self.forecast.first_frame_ms), len(self.plan.devices)


def options(steps: int, memory_gib: Sequence[float], needs: Needs, times: Times, sessions: int = 1) -> list[Option]:
    """Every placement on the first n of these devices, in their order, for every n."""
    if not memory_gib or min(memory_gib) <= 0 or len(memory_gib) > MOST_DEVICES:
        raise BadInput(f"a pipeline has 1 to {MOST_DEVICES} devices with memory, not {list(memory_gib)}")
    roles, found = roles_of(steps), []
    for count in range(1, min(len(memory_gib), len(roles)) + 1):
        for devices in partitions(roles, count):
            held = [sum(needs.of(device, sessions, not i).values()) / GIB for i, device in enumerate(devices)]
            plan = Plan(devices)
            found.append(Option(plan, simulate(plan, times, sessions=sessions), tuple(held), tuple(memory_gib[:count])))
    return found


def best(found: Sequence[Option]) -> Option | None:
    """The fastest placement that fits; of equal ones the one with the earlier first frame, then with fewer devices."""
    return min((option for option in found if option.fits), key=lambda option: option.rank, default=None)


def explain(chosen: Option, found: Sequence[Option], times: Times) -> str:
    """Why it was chosen, in a sentence."""
    devices = chosen.plan.devices
    work_ms = [sum(times.decode_ms if role == DECODE else times.step_ms for role in device) for device in devices]
    slowest = max(range(len(devices)), key=lambda i: work_ms[i])
    words = f"{'+'.join(devices[slowest])} takes {work_ms[slowest]:.0f} ms a block, and no other cut that fits is faster"
    better = min(found, key=lambda option: option.rank)
    if better.rank < chosen.rank:
        device = max(range(len(better.plan.devices)), key=lambda i: better.memory_gib[i] - better.limits_gib[i])
        shape = " | ".join("+".join(roles) for roles in better.plan.devices)
        words += f"; {shape} would be, but needs {better.memory_gib[device]:.1f} of {better.limits_gib[device]:.1f} GiB"
    most = max(len(option.plan.devices) for option in found)
    if len(devices) < most:
        words += f"; {most} devices would do no better"
    return words


def refuse(found: Sequence[Option], needs: Needs, sessions: int) -> BadInput:
    """Nothing fits: the placement that comes closest, with its arithmetic."""
    closest = min(found, key=lambda option: max(m - limit for m, limit in zip(option.memory_gib, option.limits_gib)))
    device = max(range(len(closest.memory_gib)), key=lambda i: closest.memory_gib[i] - closest.limits_gib[i])
    most = max(len(option.plan.devices) for option in found)
    roles = closest.plan.devices[device]
    parts = needs.of(roles, sessions, not device)
    arithmetic = " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return BadInput(
        f"nothing fits on up to {most} devices: the closest needs {closest.memory_gib[device]:.1f} GiB "
        f"for {'+'.join(roles)} where there are {closest.limits_gib[device]:.1f} ({arithmetic}); "
        "take more devices, 8-bit weights, fewer sessions or a smaller picture"
    )
