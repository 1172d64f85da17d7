"""A pipeline on virtual time: the real stages, channels and watchdogs, with processes, sockets and waiting left out.

A device takes a message from its channel when it is idle, runs it through its Stage when the time of its work is over, and keeps the
result while the next channel is full. A minute of it takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from tests.simulation.world import World

from everface.runtime.cluster.supervisor import TICK_S
from everface.runtime.cluster.watchdog import Watchdog
from everface.runtime.cluster.worker import HEARTBEAT_S
from everface.runtime.messages import Block, Cancel, Message, Reply, reply_of
from everface.runtime.model import Role
from everface.runtime.pipeline import MOST_CONTROL, Pipeline, PipelineLost
from everface.runtime.stage import Stage
from everface.runtime.transport.base import SLOTS, ChannelError
from everface.runtime.transport.local import LocalChannel

NOTICE_S = 0.001  # for the end of a process to be seen


class Device:
    """One process and its stage. state: idle, busy, blocked (a result waits for a slot), hung, dead."""

    def __init__(self, world: World, name: str, roles: dict[str, Role], work_s: Callable[[Message], float]):
        self.world, self.name, self.roles, self.work_s = world, name, roles, work_s
        self.stage = Stage(roles)
        self.watch = Watchdog(timeout_s=30.0)
        self.state = "idle"
        self.result: Message | None = None
        self.life = 0  # work begun in an earlier life does not end in this one
        self.done: Callable[[], None] = lambda: None

    def begin(self, message: Message) -> None:
        self.state = "busy"
        block = isinstance(message, Block)
        self.watch.begin_work(self.world.now_s, f"block {message.index}" if block else "a message")
        life = self.life

        def finish() -> None:
            if life == self.life and self.state == "busy":
                self.result = self.stage.run(message)
                self.watch.end_work(self.world.now_s)
                self.state = "blocked"
                self.done()

        self.world.after(self.work_s(message), finish)

    def again(self, anew: bool) -> None:
        """Connected again: with fresh roles, or with the old ones and no sessions."""
        self.life += 1
        self.state, self.result = "idle", None
        self.stage.reset()
        if anew:
            self.stage = Stage(self.roles)
        self.watch.start(self.world.now_s)


class VirtualPipeline(Pipeline):
    """As many devices as `roles` has entries, each with its channel; the last channel leads to the caller."""

    def __init__(self, world: World, roles: list[dict[str, Role]], work_s: Callable[[Message], float], restart_s: float):
        super().__init__(depth=len(roles) + 1)
        self.world, self.restart_s = world, restart_s
        self.devices = [Device(world, "+".join(r), r, work_s) for r in roles]
        for device in self.devices:
            device.done = self._move
            device.watch.start(0.0)
        self.lost: dict[int, str] = {}
        self.losses = 0
        self.most_held = 0
        self._connect()
        self._tick()
        self._beat()

    # faults

    def kill(self, at: int) -> None:
        device = self.devices[at]
        if device.state != "dead":
            device.state = "dead"
            self.world.after(NOTICE_S, lambda: self._lose(at, "was killed") if device.state == "dead" else None)

    def hang(self, at: int) -> None:
        if self.devices[at].state != "dead":
            self.devices[at].state = "hung"

    # Pipeline

    def close(self) -> None:
        for channel in self.channels:
            channel.abort("the pipeline is closed")

    def recover(self) -> list[str]:
        self.world.run_for(self.world.rng.uniform(0.5, 1.5) * self.restart_s)
        for at, device in enumerate(self.devices):
            if device.state in ("dead", "hung"):  # it would not have joined
                self._lose(at, "was lost meanwhile")
        lost, self.lost = self.lost, {}
        self._connect()
        for at, device in enumerate(self.devices):
            device.again(anew=at in lost)
        self._nothing_is_under_way()
        return [self.devices[at].name for at in lost]

    def _send(self, message: Message) -> None:
        if self.lost and not isinstance(message, Cancel):
            self._raise()
        try:
            while not isinstance(message, Cancel) and not self.channels[0].room():
                if not self.world.step():
                    raise RuntimeError("a put waits for ever")
            self.channels[0].send(message)
        except ChannelError:
            self._raise()
        self._move()

    def _receive(self) -> Reply | None:
        self._move()
        try:
            message = self.channels[-1].receive(0.0)
        except ChannelError:
            self._raise()
        self._move()
        return message  # type: ignore[return-value]  the last stage passes replies only

    # inside

    def _connect(self) -> None:
        count = len(self.devices)

        def hearer(at: int) -> Callable[[Cancel], None] | None:
            return (lambda notice: self._on_cancel(at, notice)) if at < count else None

        self.channels = [LocalChannel(SLOTS if d < count else self.depth + MOST_CONTROL, hearer(d)) for d in range(count + 1)]

    def _on_cancel(self, at: int, notice: Cancel) -> None:
        if self.devices[at].state in ("dead", "hung"):
            return  # and nobody after it hears
        self.devices[at].stage.on_cancel(notice)
        self.channels[at + 1].send(notice)

    def _move(self) -> None:
        """Whatever can move without time passing."""
        moved = True
        while moved:
            moved = False
            for at, device in enumerate(self.devices):
                if device.state == "blocked":
                    moved |= self._give(at, device)
                if device.state == "idle" and self.channels[at].held:
                    try:
                        message = self.channels[at].receive(0.0)
                    except ChannelError:
                        continue
                    if message is not None:
                        device.begin(message)
                        moved = True
            self.most_held = max(self.most_held, *(channel.held for channel in self.channels[:-1]))

    def _give(self, at: int, device: Device) -> bool:
        message = device.result
        assert message is not None
        passed = message if at < len(self.devices) - 1 else reply_of(message)
        if passed is not None:
            if not self.channels[at + 1].room():
                return False
            try:
                self.channels[at + 1].send(passed)
            except ChannelError:
                return False
        device.state, device.result = "idle", None
        return True

    def _lose(self, at: int, why: str) -> None:
        if at in self.lost:
            return
        self.lost[at] = f"stage {self.devices[at].name} {why}"
        self.losses += 1
        self.devices[at].state = "dead"
        for device in self.devices:
            device.watch.stop()
        for channel in self.channels:
            channel.abort(self.lost[at])

    def _tick(self) -> None:
        for at, device in enumerate(self.devices):
            if why := device.watch.hang_reason(self.world.now_s):
                self._lose(at, why)
        self.world.after(TICK_S, self._tick)

    def _beat(self) -> None:
        for device in self.devices:
            if device.state not in ("dead", "hung"):
                device.watch.alive(self.world.now_s)
        self.world.after(HEARTBEAT_S, self._beat)

    def _raise(self) -> NoReturn:
        raise PipelineLost(next(iter(self.lost.values()), "the pipeline is closed"))
