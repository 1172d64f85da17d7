"""A discrete-event model of the pipeline: what rate, first frame and delays to expect from measured times, before buying devices.

It follows the runtime's own rules: roles in series on a device, two slots a channel with credits, never more blocks in flight than the
stages and the caller hold, the refreshed sink that block 4 waits for, the earliest deadline first among sessions. Times are milliseconds.
A block is 12 frames, 480 ms of video. Faults are not foretold but tried, on the real runtime: see trial.py.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from everface.core.config import FPS
from everface.core.errors import BadInput
from everface.runtime.transport.base import SLOTS
from everface.runtime.planning.placement import DECODE, Plan, place

BLOCK_FRAMES = 12
BLOCK_MS = 1000 * BLOCK_FRAMES / FPS
REFRESH_AT = 4  # the block that waits for the first one's clean latent


@dataclass(frozen=True)
class Times:
    """Mean times of a block: one denoising step, its decoding, one channel. `jitter` is their coefficient of variation."""

    step_ms: float
    decode_ms: float
    transfer_ms: float = 0.5
    prepare_ms: float = 0.0  # features and audio tokens, in the session's process
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if min(self.step_ms, self.decode_ms) <= 0 or min(self.transfer_ms, self.prepare_ms, self.jitter) < 0:
            raise BadInput("step and decode times must be above zero, channel, preparation and jitter not below: mend the numbers")

    def draw(self, mean_ms: float, rng: random.Random) -> float:
        """One time from a gamma distribution, or the mean itself without jitter."""
        if not self.jitter or not mean_ms:
            return mean_ms
        shape = self.jitter**-2
        return rng.gammavariate(shape, mean_ms / shape)


@dataclass(frozen=True)
class Forecast:
    """What came out of a simulated stream, all sessions together unless said otherwise."""

    fps: float
    first_frame_ms: float  # of the first session: from its sound being there to its first frame
    period_ms: tuple[float, float, float]  # p50, p95, p99 between blocks that leave the pipeline
    interrupt_ms: tuple[float, float]  # p50, p99 from an interruption, its new sound at hand, to the first frame of that
    busy: tuple[float, ...]  # share of the time each device works
    misses: float  # live: share of blocks that came after their place in the video, which starts `buffer_ms` after the first


@dataclass
class _Stream:
    """One session in the simulation."""

    emitted: int = 0
    delivered_ms: list[float] = field(default_factory=list)


def simulate(
    plan: Plan, times: Times, *, sessions: int = 1, blocks: int = 200, live: bool = False, buffer_ms: float = 120.0, seed: int = 0
) -> Forecast:
    """Run `blocks` blocks of every session. `live`: a block's sound takes 480 ms to come; else all of it is there."""
    if sessions < 1 or blocks < 8:
        raise BadInput("simulate at least one session of eight blocks")
    rng = random.Random(seed)
    devices, depth = len(plan.devices), len(plan.devices) + (not plan.inline)
    work = [sum(times.decode_ms if role == DECODE else times.step_ms for role in roles) for roles in plan.devices]
    streams = [_Stream() for _ in range(sessions)]
    starts: list[list[float]] = []  # [block in order of emission][device]
    ends: list[list[float]] = []  # when its work there was done
    frees: list[float] = [0.0] * devices  # when a device may take the next block
    leaves: list[float] = []
    busy_ms, late = [0.0] * devices, 0

    def ready_ms(stream: _Stream) -> float:
        cancels = BLOCK_MS * (stream.emitted + 1) if live else 0.0
        if stream.emitted == REFRESH_AT:
            cancels = max(cancels, stream.delivered_ms[0] if stream.delivered_ms else float("inf"))
        return cancels

    clock = 0.0
    for n in range(sessions * blocks):
        room = leaves[n - depth] if n >= depth else 0.0
        open_streams = [s for s in streams if s.emitted < blocks]
        clock = max(clock, room, min(ready_ms(s) for s in open_streams))
        stream = min((s for s in open_streams if ready_ms(s) <= clock), key=lambda s: s.emitted)  # the earliest deadline
        at, start, done = clock + times.draw(times.prepare_ms, rng), [], []
        for d in range(devices):
            begin = max(at + (times.draw(times.transfer_ms, rng) if devices > 1 or d else 0.0), frees[d])
            spent = times.draw(work[d], rng)
            end = begin + spent
            busy_ms[d] += spent
            start.append(begin)
            done.append(end)
            # A give waits for a slot: the block before the last one must have been taken by the next device.
            frees[d] = max(end, starts[n - SLOTS][d + 1]) if d + 1 < devices and n >= SLOTS else end
            at = frees[d]
        starts.append(start)
        ends.append(done)
        leaves.append(at + (times.transfer_ms if devices > 1 else 0.0))
        stream.delivered_ms.append(leaves[-1])
        due = stream.delivered_ms[0] + BLOCK_MS * stream.emitted
        late += live and leaves[-1] > due + buffer_ms
        stream.emitted += 1
    waits = [_interrupt(starts, ends, work, times, rng) for _ in range(200)]
    return _forecast(streams, leaves, busy_ms, late, live, waits)


def _interrupt(starts: list[list[float]], ends: list[list[float]], work: list[float], times: Times, rng: random.Random) -> float:
    """From an interruption at some moment of the steady stream to the first frame of new sound. What a device works on is finished,
    what waits is dropped: the new block meets devices that are done with at most one old one each."""
    began = rng.uniform(starts[len(starts) // 4][0], starts[-1][0])
    at = began + times.draw(times.prepare_ms, rng)
    for d, mean_ms in enumerate(work):
        busy = max((end[d] for start, end in zip(starts, ends) if start[d] <= began), default=began)
        at = max(at + (times.draw(times.transfer_ms, rng) if len(work) > 1 else 0.0), busy) + times.draw(mean_ms, rng)
    return at - began + (times.transfer_ms if len(work) > 1 else 0.0)


def _forecast(
    streams: list[_Stream], leaves: list[float], busy_ms: list[float], late: int, live: bool, waits: list[float]
) -> Forecast:
    steady = leaves[len(leaves) // 4 :]  # without the filling of the pipe
    gaps = sorted(b - a for a, b in pairwise(steady))
    first = streams[0].delivered_ms[0] - (BLOCK_MS if live else 0.0)
    return Forecast(
        fps=1000 * BLOCK_FRAMES / statistics.mean(gaps),
        first_frame_ms=first,
        period_ms=(_rank(gaps, 0.5), _rank(gaps, 0.95), _rank(gaps, 0.99)),
        interrupt_ms=(_rank(sorted(waits), 0.5), _rank(sorted(waits), 0.99)),
        busy=tuple(ms / leaves[-1] for ms in busy_ms),
        misses=late / len(leaves),
    )


def _rank(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


# The paper's own figures (arXiv 2512.04677 v5, tables 3 and 5): what, devices, steps, times of a block, published fps and first frame.
# 0.15 s is what its first frames leave beyond the steps: the decoding.
PAPER = (
    ("kernels, 4 steps", 5, 4, Times(265.5, 150.0), 45.2, 1210.0),
    ("kernels, 3 steps", 4, 3, Times(265.5, 150.0), 45.2, 950.0),
    ("kernels, 2 steps", 3, 2, Times(265.5, 150.0), 45.2, 680.0),
    ("before the kernels", 5, 4, Times(574.7, 237.5), 20.88, None),
)


def paper_table() -> list[tuple[str, float, float, float, float | None]]:
    """Rows (what, simulated fps, published fps, simulated first frame in ms, published)."""
    rows = []
    for what, devices, steps, times, fps, first_ms in PAPER:
        forecast = simulate(place(steps, devices), times)
        rows.append((what, forecast.fps, fps, forecast.first_frame_ms, first_ms))
    return rows
