"""Callers, faults and invariants on virtual time. `python -m tests.simulation` runs one trial a seed and prints the seeds that fail.

A trial is some seconds of a few callers on a pipeline whose stages are killed, hang, slow down, throw or return invalid results.
Whatever happens, these hold:

    order       pts rise, without a hole inside a turn; no frame of an older turn after an interruption
    audio       every frame shows the audio of its own pts; every accepted sample is shown once or reported as dropped
    results     one SegmentEnd for every turn that had audio
    bounds      slots of channels, blocks in flight, finished blocks, waiting audio
    liveness    whoever ended a segment and polls gets all of it, or an error that says why not
    baseline    after all have left, no stage, scheduler or pipeline holds anything of them
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.caller import END_S, Caller
from tests.simulation.counter import ROLES, CounterRole, Violation
from tests.simulation.virtual_pipeline import VirtualPipeline
from tests.simulation.world import World

from everface.core.log import log
from everface.runtime.messages import Block, Message
from everface.runtime.scheduler import Scheduler


@dataclass(frozen=True)
class Outcome:
    """What a trial was like, so that one sees that it was one."""

    blocks: int
    losses: int
    interruptions: int
    failed: int  # sessions that were ended by an error
    recoveries: int


def trial(seed: int) -> Outcome:
    """One seed. Raises Violation, or whatever a bug raises."""
    world = World(seed)
    rng = world.rng
    devices = rng.randint(1, 5)
    edges = sorted(rng.sample(range(1, 5), devices - 1))
    faults: dict[tuple[int, int, str], str] = {}
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 4)):
            faults[rng.randint(1, 4), rng.randint(0, 12), rng.choice(ROLES)] = rng.choice(("throw", "invalid"))
    parts = [ROLES[a:b] for a, b in zip([0, *edges], [*edges, len(ROLES)])]
    mean_s = rng.choice((0.02, 0.08, 0.2))
    slow: list[float] = []  # until when everything takes three times as long

    def work_s(message: Message) -> float:
        factor = 3.0 if slow and world.now_s < slow[-1] else 1.0
        return factor * (rng.gammavariate(8.0, mean_s / 8.0) if isinstance(message, Block) else 0.01)

    roles = [{name: CounterRole(name, faults) for name in part} for part in parts]
    pipeline = VirtualPipeline(world, [dict(part) for part in roles], work_s, rng.choice((0.2, 1.0, 4.0)))
    scheduler = Scheduler(pipeline, threaded=False, now=world.now)
    callers = [Caller(world, scheduler) for _ in range(rng.randint(1, 4))]
    for caller in callers:
        world.after(rng.uniform(0.0, 2.0), caller.come)
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        strike = rng.choice((pipeline.kill, pipeline.hang))
        at = rng.randrange(devices)
        world.after(rng.uniform(0.0, 8.0), lambda strike=strike, at=at: strike(at))
    if rng.random() < 0.3:
        world.after(rng.uniform(0.0, 4.0), lambda: slow.append(world.now_s + 2.0))
    while not all(c.gone for c in callers):
        scheduler.run_once()
        if not 0 <= pipeline.in_flight <= pipeline.depth:
            raise Violation(f"{pipeline.in_flight} blocks in flight of {pipeline.depth}")
        world.step()
        if world.now_s > END_S + 60.0:
            raise Violation("the trial does not end")
    for _ in range(400):  # the last messages pass; a stage may still be lost, and found so only by its silence
        scheduler.run_once()
        world.step()
    left = [d.name for d in pipeline.devices if list(d.stage.sessions)]
    if left or scheduler.busy or any(role.last for part in roles for role in part.values()):
        raise Violation(f"left behind: stages {left}, {pipeline.in_flight} in flight, or a session")
    if pipeline.most_held > 2:
        raise Violation(f"a channel held {pipeline.most_held} messages")
    return Outcome(
        blocks=sum(c.session.timeline.frames // 12 for c in callers if c.session),
        losses=pipeline.losses,
        interruptions=sum(s.interrupted for c in callers for s in c.segments.values()),
        failed=sum(bool(c.failure) for c in callers),
        recoveries=len(scheduler.recoveries),
    )


def run(seeds: range) -> tuple[dict[int, str], list[int]]:
    """One trial a seed: what failed, and the sums of what the others were like."""
    failed, sums = {}, [0] * len(Outcome.__dataclass_fields__)
    for seed in seeds:
        try:
            outcome = trial(seed)
            sums = [a + b for a, b in zip(sums, vars(outcome).values())]
        except Exception as error:
            failed[seed] = f"{type(error).__name__}: {error}"
    return failed, sums


def run_quietly(seeds: range) -> tuple[dict[int, str], list[int]]:
    """`run` in a process of its own, without a log line for every loss."""
    log.setLevel("CRITICAL")
    return run(seeds)
