"""One worker process a device. The caller's process is the last rank, which feeds the first stage and receives from the last."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from typing import Any, NoReturn

import torch

from everface.core import env
from everface.core.config import Deployment
from everface.core.errors import Unavailable
from everface.core.log import log
from everface.runtime.cluster.connections import CONNECT_S, Connections
from everface.runtime.cluster.control import Connect
from everface.runtime.cluster.supervisor import Supervisor
from everface.runtime.messages import Message, Reply, Stop
from everface.runtime.pipeline import MOST_CONTROL, Pipeline, PipelineLost
from everface.runtime.planning.placement import Placement
from everface.runtime.transport.base import SLOTS, ChannelError
from everface.runtime.transport.selection import select

START_S = 1800.0  # for workers to import, load weights and build their roles
GRACE_S = 2.0  # for workers to end by themselves
VERDICT_S = 5.0  # for the supervisor to find out why a channel broke


class ProcessPipeline(Pipeline):
    """`model` is the import path of a registered model, `spec` plain data for its roles. Raises Unavailable if a stage does not start."""

    def __init__(self, placement: Placement, model: str, spec: dict[str, Any], deployment: Deployment):
        count = len(placement.devices)
        super().__init__(depth=count + 1)  # the stages, and the caller, which holds a block while it takes its reply
        self._timeout_s = deployment.timeout_s
        # all in flight fits into the last channel: a slow caller stalls no stage
        self._slots = [SLOTS] * count + [self.depth + MOST_CONTROL]
        self._devices = devices_of(deployment.device, count)
        line = [*self._devices, "cpu"]  # the caller takes frames to the host
        self._kinds = [select(line[rank - 1], line[rank], same_process=False).kind for rank in range(count + 1)]
        self._connections: Connections | None = None
        self._folder = tempfile.mkdtemp(prefix="everface-")  # private to this user
        # equal thread counts give equal bits on every placement
        threads = deployment.threads or env.threads() or torch.get_num_threads()
        build = {"model": model, "spec": spec, "threads": threads}
        self._supervisor = Supervisor(placement, self._devices, build, self._timeout_s, self._abort)
        atexit.register(self.close)
        try:
            self._connect()
        except PipelineLost as lost:
            self.close()
            raise Unavailable(str(lost)) from None
        except BaseException:
            self.close()
            raise
        stages = " | ".join("+".join(device) for device in placement.devices)
        log.info("pipeline of %d processes with %d threads each: %s", count, threads, stages)

    @property
    def processes(self) -> list[int]:
        """Process ids, upstream first."""
        return [child.process.pid for child in self._supervisor.children]

    def block_seconds(self) -> list[list[float]]:
        """The times of each stage's last blocks, upstream first."""
        return [list(child.watch.seconds) for child in self._supervisor.children]

    def recover(self) -> list[str]:
        restarted: list[str] = []
        while True:
            self._disconnect()
            restarted += self._supervisor.restore()
            try:
                self._connect()
                return restarted
            except PipelineLost as lost:
                log.warning("lost again while recovering: %s", lost)

    def close(self) -> None:
        atexit.unregister(self.close)
        idle = self._connections is not None and not self.in_flight and not self._supervisor.lost()
        if idle and self._connections is not None:
            with contextlib.suppress(ChannelError):
                self._connections.sender.send(Stop())
        self._supervisor.close(GRACE_S if idle else 0.0)
        self._disconnect()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> None:
        """Wait for the workers' roles, then connect to them all. Raises PipelineLost."""
        supervisor, world = self._supervisor, len(self._supervisor.children) + 1
        try:
            supervisor.wait_built(START_S)
            ours = Connect(
                supervisor.generation + 1, world - 1, world, self._folder, "cpu", self._kinds, self._slots, self._timeout_s
            )  # fmt: skip
            supervisor.connect(ours)
            self._connections = Connections(ours, lambda _: None, self.signal)
            self._connections.wait_connected()
            supervisor.wait_connected(CONNECT_S)
        except (ChannelError, Unavailable) as error:
            self._lose(str(error))
        with self._lock:
            self.in_flight = 0

    def _disconnect(self) -> None:
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

    def _abort(self, reason: str) -> None:
        connections = self._connections
        if connections is not None:
            connections.abort(reason)

    def _send(self, message: Message) -> None:
        connections = self._connections
        try:
            if connections is None:
                raise ChannelError("the pipeline is not connected")
            connections.sender.send(message)
        except ChannelError as error:
            self._lose(str(error))

    def _receive(self) -> Reply | None:
        connections = self._connections
        try:
            if connections is None:
                raise ChannelError("the pipeline is closed")
            return connections.receiver.receive(0.0)  # type: ignore[return-value]  # the last stage sends replies only
        except ChannelError as error:
            self._lose(str(error))

    def _lose(self, what: str) -> NoReturn:
        """Raise PipelineLost with the supervisor's verdict, or Unavailable when that is final."""
        verdict = self._supervisor.wait_loss(VERDICT_S if self._connections is not None else 0.0)
        self._supervisor.check()
        raise PipelineLost(verdict or what)


def devices_of(device: str, count: int) -> list[str]:
    """Where each of `count` stages lives: on GPUs of their own as far as there are so many, in turn from the first."""
    if device != "cuda":
        return [device] * count
    return [f"cuda:{rank % max(1, torch.cuda.device_count())}" for rank in range(count)]
