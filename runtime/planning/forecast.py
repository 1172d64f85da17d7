"""A discrete-event model of the pipeline: the frame rate, first-frame latency and delays to expect from measured times.

It follows the runtime's rules: roles in series on a device, two slots a channel with credits, never more blocks in flight than the
stages and the caller hold, blocks that wait for an earlier block's result, the earliest deadline first among sessions.
Times are milliseconds. Faults are not forecast: tests/simulation runs the real scheduler against them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from everface.core.errors import BadInput
from everface.runtime.model import BlockFormat
from everface.runtime.planning.placement import Placement
from everface.runtime.transport.base import SLOTS


@dataclass(frozen=True)
class Times:
    """Mean times of a block in milliseconds: each role, one transfer between devices, preparation in the session's process.

    `rest_ms`: what a role does after its device has sent the block on. `jitter` is their coefficient of variation. `format` and `waits` describe the model: block `waits[n]` must have come back before
    block n is sent.
    """

    role_ms: Mapping[str, float]
    transfer_ms: float = 0.5
    prepare_ms: float = 0.0
    jitter: float = 0.0
    format: BlockFormat = field(default_factory=BlockFormat)
    waits: Mapping[int, int] = field(default_factory=dict[int, int])
    rest_ms: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        if min(self.role_ms.values()) <= 0 or min(self.transfer_ms, self.prepare_ms, self.jitter) < 0:
            raise BadInput("times of roles must be above zero, transfer, preparation and jitter not below: correct the numbers")

    @property
    def block_ms(self) -> float:
        """Length of a block of video."""
        return 1000 * self.format.block_s

    def device_ms(self, roles: Sequence[str]) -> float:
        return sum(self.role_ms[role] for role in roles)

    def device_rest_ms(self, roles: Sequence[str]) -> float:
        return sum(self.rest_ms.get(role, 0.0) for role in roles)

    def draw(self, mean_ms: float, rng: random.Random) -> float:
        """One time from a gamma distribution, or the mean itself without jitter."""
        if not self.jitter or not mean_ms:
            return mean_ms
        shape = self.jitter**-2
        return rng.gammavariate(shape, mean_ms / shape)


@dataclass(frozen=True)
class Forecast:
    """The outcome of a simulated stream, all sessions together unless said otherwise."""

    fps: float
    first_frame_ms: float  # of the first session: from its audio being there to its first frame
    period_ms: tuple[float, float, float]  # p50, p95, p99 between blocks that leave the pipeline
    interrupt_ms: tuple[float, float]  # p50, p99 from an interruption, with new audio at hand, to its first frame
    busy: tuple[float, ...]  # share of the time each device works
    misses: float  # live: share of blocks that came after their place in the video, which starts `buffer_ms` after the first


@dataclass
class _Stream:
    """One session in the simulation."""

    sent: int = 0
    delivered_ms: list[float] = field(default_factory=list[float])


def simulate(
    placement: Placement,
    times: Times,
    *,
    sessions: int = 1,
    blocks: int = 200,
    live: bool = False,
    buffer_ms: float = 120.0,
    seed: int = 0,
) -> Forecast:
    """Run `blocks` blocks of every session. `live`: a block's audio arrives as it is spoken; else all of it is there."""
    if sessions < 1 or blocks < 8:
        raise BadInput("simulate at least one session of eight blocks")
    rng = random.Random(seed)
    devices, depth = len(placement.devices), len(placement.devices) + (not placement.inline)
    work = [times.device_ms(roles) for roles in placement.devices]
    rest = [times.device_rest_ms(roles) for roles in placement.devices]
    streams = [_Stream() for _ in range(sessions)]
    starts: list[list[float]] = []  # [block in order of sending][device]
    ends: list[list[float]] = []  # when its device may take the next block
    frees: list[float] = [0.0] * devices  # when a device may take the next block
    leaves: list[float] = []
    busy_ms, late = [0.0] * devices, 0

    def ready_ms(stream: _Stream) -> float:
        heard = times.block_ms * (stream.sent + 1) if live else 0.0
        needed = times.waits.get(stream.sent)
        if needed is not None:
            heard = max(heard, stream.delivered_ms[needed] if len(stream.delivered_ms) > needed else float("inf"))
        return heard

    clock = 0.0
    for n in range(sessions * blocks):
        room = leaves[n - depth] if n >= depth else 0.0
        open_streams = [s for s in streams if s.sent < blocks]
        clock = max(clock, room, min(ready_ms(s) for s in open_streams))
        stream = min((s for s in open_streams if ready_ms(s) <= clock), key=lambda s: s.sent)  # the earliest deadline
        at, start = clock + times.draw(times.prepare_ms, rng), list[float]()
        for d in range(devices):
            begin = max(at + (times.draw(times.transfer_ms, rng) if devices > 1 or d else 0.0), frees[d])
            spent = times.draw(work[d], rng)
            end = begin + spent
            busy_ms[d] += spent
            start.append(begin)
            # A send waits for a slot: the block before the last one must have been received by the next device.
            at = max(end, starts[n - SLOTS][d + 1]) if d + 1 < devices and n >= SLOTS else end
            after = times.draw(rest[d], rng)
            frees[d], busy_ms[d] = at + after, busy_ms[d] + after
        starts.append(start)
        ends.append(list(frees))
        leaves.append(at + (times.transfer_ms if devices > 1 else 0.0))
        stream.delivered_ms.append(leaves[-1])
        due = stream.delivered_ms[0] + times.block_ms * stream.sent
        late += live and leaves[-1] > due + buffer_ms
        stream.sent += 1
    interrupts = [_interrupt(starts, ends, work, times, rng) for _ in range(200)]
    steady = leaves[len(leaves) // 4 :]  # without the filling of the pipe
    gaps = sorted(b - a for a, b in pairwise(steady))
    return Forecast(
        fps=1000 * times.format.frames / statistics.mean(gaps),
        first_frame_ms=streams[0].delivered_ms[0] - (times.block_ms if live else 0.0),
        period_ms=(_quantile(gaps, 0.5), _quantile(gaps, 0.95), _quantile(gaps, 0.99)),
        interrupt_ms=(_quantile(sorted(interrupts), 0.5), _quantile(sorted(interrupts), 0.99)),
        busy=tuple(ms / leaves[-1] for ms in busy_ms),
        misses=late / len(leaves),
    )


def _interrupt(starts: list[list[float]], ends: list[list[float]], work: list[float], times: Times, rng: random.Random) -> float:
    """From an interruption at some moment of the steady stream to the first frame of new audio. What a device works on is finished,
    what waits is dropped: the new block meets devices that are done with at most one old one each."""
    began = rng.uniform(starts[len(starts) // 4][0], starts[-1][0])
    at = began + times.draw(times.prepare_ms, rng)
    for d, mean_ms in enumerate(work):
        busy = max((end[d] for start, end in zip(starts, ends) if start[d] <= began), default=began)
        at = max(at + (times.draw(times.transfer_ms, rng) if len(work) > 1 else 0.0), busy) + times.draw(mean_ms, rng)
    return at - began + (times.transfer_ms if len(work) > 1 else 0.0)


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]
