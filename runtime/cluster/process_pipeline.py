"""One worker process per device, of this host or of others. The caller's process is the last rank: it feeds the first stage and receives from the last."""

from __future__ import annotations

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
from everface.runtime.cluster.control import Build, Connect
from everface.runtime.cluster.supervisor import Supervisor
from everface.runtime.exit_hook import close_at_exit
from everface.runtime.messages import Message, Reply, Stop
from everface.runtime.pipeline import MOST_CONTROL, Pipeline, PipelineLost
from everface.runtime.planning.placement import Placement
from everface.runtime.transport.base import SLOTS, ChannelError
from everface.runtime.transport.gloo import open_store
from everface.runtime.transport.selection import select

START_S = 1800.0  # for workers to import, load weights and build their roles
GRACE_S = 2.0  # for workers to end by themselves
VERDICT_S = 5.0  # for the supervisor to find out why a channel broke


class ProcessPipeline(Pipeline):
    """`model` is the import path of a registered model, `spec` plain data for its roles.

    Raises Unavailable if a stage does not start, BadInput if other hosts cannot join.
    """

    def __init__(self, placement: Placement, model: str, spec: dict[str, Any], deployment: Deployment):
        count = len(placement.devices)
        super().__init__(depth=count + 1)  # one for each stage, and one for the caller while it takes a reply
        self._timeout_s = deployment.timeout_s
        # The last channel has room for all blocks in flight, so that a slow caller stalls no stage.
        self._slots = [SLOTS] * count + [self.depth + MOST_CONTROL]
        devices = devices_of(deployment.device, count)
        line = [*devices, "cpu"]  # the caller takes frames to the host
        remote = [False] * (count - placement.remote) + [True] * placement.remote + [False]  # by rank
        self._kinds = [
            "gloo" if remote[rank - 1] or remote[rank] else select(line[rank - 1], line[rank], same_process=False).kind
            for rank in range(count + 1)
        ]
        self._address = placement.address[0]
        self._connections: Connections | None = None
        # Equal thread counts give equal bits on every placement.
        threads = deployment.threads or env.threads() or torch.get_num_threads()
        builds = [Build(list(roles), device, model, spec, threads) for roles, device in zip(placement.devices, devices)]
        self._store = open_store() if placement.remote else None
        self.supervisor = Supervisor(builds, self._timeout_s, self._abort, placement.remote, placement.address)
        self._folder = tempfile.mkdtemp(prefix="everface-")  # private to this user
        self._forget = close_at_exit(self.close)
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
        """Process ids on their hosts, upstream first; of another host that of its `everface join`."""
        return [worker.pid for worker in self.supervisor.workers]

    def block_seconds(self) -> list[list[float]]:
        """The times of each stage's last blocks, upstream first."""
        return [list(worker.watchdog.block_times_s) for worker in self.supervisor.workers]

    def recover(self) -> list[str]:
        restarted: list[str] = []
        while True:
            self._disconnect()
            restarted += self.supervisor.restore()
            try:
                self._connect()
                return restarted
            except PipelineLost as lost:
                log.warning("lost again while recovering: %s", lost)

    def close(self) -> None:
        connections, grace_s = self._connections, 0.0
        if connections is not None and not self.in_flight and not self.supervisor.loss:
            grace_s = GRACE_S
            with contextlib.suppress(ChannelError):
                connections.sender.send(Stop())
        self.supervisor.close(grace_s)
        self._disconnect()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._forget()

    def _connect(self) -> None:
        """Wait until the workers have built their roles, then connect all. Raises PipelineLost."""
        supervisor, world = self.supervisor, len(self.supervisor.workers) + 1
        try:
            supervisor.wait_built(START_S)
            connect = Connect(
                generation=supervisor.generation + 1, rank=world - 1, world=world, folder=self._folder, device="cpu",
                kinds=self._kinds, slots=self._slots, timeout_s=self._timeout_s,
                store=f"{self._address}:{self._store.port}" if self._store else "", address=self._address,
            )  # fmt: skip
            supervisor.connect(connect)
            self._connections = Connections(connect, lambda _: None, self.signal)
            self._connections.wait_connected()
            supervisor.wait_connected(CONNECT_S)
        except (ChannelError, Unavailable) as error:
            self._raise_lost(str(error))
        self._nothing_is_under_way()

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
            self._raise_lost(str(error))

    def _receive(self) -> Reply | None:
        connections = self._connections
        try:
            if connections is None:
                raise ChannelError("the pipeline is closed")
            return connections.receiver.receive(0.0)  # type: ignore[return-value]  # the last stage sends replies only
        except ChannelError as error:
            self._raise_lost(str(error))

    def _raise_lost(self, reason: str) -> NoReturn:
        """Raise PipelineLost with the supervisor's reason if it has one, or Unavailable if that is final."""
        loss = self.supervisor.wait_loss(VERDICT_S if self._connections is not None else 0.0)
        self.supervisor.check()
        raise PipelineLost(loss or reason)


def devices_of(device: str, count: int) -> list[str]:
    """The device of each of `count` stages: with "cuda" one GPU each as far as there are enough, then from the first again."""
    if device != "cuda":
        return [device] * count
    return [f"cuda:{rank % max(1, torch.cuda.device_count())}" for rank in range(count)]
