"""A pipeline of roles: messages in at the front, finished blocks out at the end, never more in flight than it is deep."""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from typing import Any, Self

import torch

from everface.core import env
from everface.core.block import Block, Closing, Opening
from everface.core.config import Deployment
from everface.core.errors import BadInput, Unavailable
from everface.core.log import log
from everface.runtime.handoff import SLOTS, Broken, GlooGiver, GlooTaker, Local
from everface.runtime.plan import Plan
from everface.runtime.stage import Epoch, Message, Stage, Stop, Tombstone
from everface.runtime.supervisor import JOINING, READY, Supervisor
from everface.runtime.worker import find_factory, join_group

START_S = 1800.0  # for children to import, load weights and build their roles
JOIN_S = 60.0  # for processes that have started to connect
GRACE_S = 2.0  # for children to end by themselves
VERDICT_S = 2.0  # for the supervisor to find out why a hop broke

Answer = Block | Tombstone


class Pipeline(ABC):
    """Counts blocks between put and take (the governor) and admits one session at a time."""

    def __init__(self, depth: int):
        self.depth = depth  # most blocks in flight
        self.in_flight = 0
        self._session: int | None = None
        self._lock = threading.Lock()

    def room(self) -> int:
        """Blocks that may be put now."""
        return self.depth - self.in_flight

    def put(self, message: Message) -> None:
        """Give a message to the first role. RuntimeError for a block beyond the depth: ask room() first.

        Between processes it only sets the message on its way: a role that fails on it is told by a later call.
        """
        if isinstance(message, Block):
            if self.room() <= 0:
                raise RuntimeError(f"block {message.index} is one more than the {self.depth} this pipeline may hold")
        elif isinstance(message, Opening) and self._session is not None:
            raise Unavailable(f"this pipeline serves session {self._session}: close it before opening another")
        self._count(isinstance(message, Block))
        try:
            self._put(message)
        except BaseException:
            self._count(-isinstance(message, Block))
            raise
        if isinstance(message, Opening):
            self._session = message.session
        elif isinstance(message, Closing) and message.session == self._session:
            self._session = None

    def take(self, timeout_s: float) -> Answer | None:
        """The next block or tombstone in order, None if none came in time. Raises Unavailable if a stage failed."""
        answer = self._take(timeout_s)
        self._count(-(answer is not None))
        return answer

    def _count(self, change: int) -> None:
        with self._lock:
            self.in_flight += change

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End every stage. Blocks in flight are lost. May be called twice."""

    @abstractmethod
    def _put(self, message: Message) -> None: ...

    @abstractmethod
    def _take(self, timeout_s: float) -> Answer | None: ...


class InlinePipeline(Pipeline):
    """Every role in the caller's process: `put` of a block returns when it is finished."""

    def __init__(self, plan: Plan, factory: str, spec: dict[str, Any], deployment: Deployment):
        super().__init__(depth=1)
        threads = deployment.threads or env.threads()
        if threads:
            torch.set_num_threads(threads)
        build = find_factory(factory)
        self._stage = Stage({role: build(role, spec) for role in plan.roles})
        self._finished = Local(slots=self.depth)

    def close(self) -> None:
        if self._session is not None:
            self.put(Closing(self._session))
        self._finished.abort("the pipeline is closed")

    def _put(self, message: Message) -> None:
        answer = self._stage.run(message)
        if isinstance(answer, Block | Tombstone):
            self._finished.put(answer)

    def _take(self, timeout_s: float) -> Answer | None:
        return self._finished.take(0)  # type: ignore[return-value]


class ProcessPipeline(Pipeline):
    """One child process a device, joined by gloo; the caller's process is the last rank, which feeds the first and takes from the last."""

    def __init__(self, plan: Plan, factory: str, spec: dict[str, Any], deployment: Deployment):
        count = len(plan.devices)
        super().__init__(depth=count)
        timeout_s = deployment.timeout_s
        slots = [SLOTS] * count + [max(SLOTS, self.depth)]  # all in flight fits into the last hop: a slow viewer stalls no stage
        self._ends: list[GlooGiver | GlooTaker] = []
        # equal thread counts give equal bits on every placement
        threads = deployment.threads or env.threads() or torch.get_num_threads()
        folder = tempfile.mkdtemp(prefix="everface-")  # private to this user, and gone once everybody has met
        orders = {
            "world": count + 1, "store": f"{folder}/store", "factory": factory, "spec": spec,
            "threads": threads, "timeout_s": timeout_s, "start_s": START_S, "slots": slots,
        }  # fmt: skip
        try:
            self._supervisor = Supervisor(plan, orders, timeout_s, self._abort)
            atexit.register(self.close)
            try:
                self._supervisor.wait_all(JOINING, START_S)
                group = join_group(orders["store"], count, count + 1, JOIN_S)
                self._giver = GlooGiver(group, 0, slots[0], timeout_s)
                self._taker = GlooTaker(group, count - 1, lambda _: None, timeout_s)
                self._ends = [self._giver, self._taker]
                self._supervisor.wait_all(READY, START_S)
            except BaseException as error:
                failure = self._supervisor.failure
                self.close()
                if isinstance(error, RuntimeError) and not isinstance(error, Unavailable):
                    raise Unavailable(failure or f"the stages could not be connected, start them again: {error}") from None
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        log.info("pipeline of %d processes with %d threads each: %s", count, threads, " | ".join("+".join(d) for d in plan.devices))

    @property
    def processes(self) -> list[int]:
        """Process ids, upstream first."""
        return [child.process.pid for child in self._supervisor.children]

    def close(self) -> None:
        atexit.unregister(self.close)
        if self._ends and not self._supervisor.failure:
            with contextlib.suppress(Broken):
                self._giver.put(Stop())
        self._supervisor.close(GRACE_S if self._ends and not self.in_flight else 0.0)
        self._abort("the pipeline is closed")
        for end in self._ends:
            end.thread.join()
        self._ends = []

    def _put(self, message: Message) -> None:
        self._supervisor.check()
        try:
            if not isinstance(message, Epoch | Stop):
                self._supervisor.fed += 1
            self._giver.put(message)
        except Broken as error:
            self._explain(error)

    def _take(self, timeout_s: float) -> Answer | None:
        self._supervisor.check()
        try:
            return self._taker.take(timeout_s)  # type: ignore[return-value]
        except Broken as error:
            return self._explain(error)

    def _abort(self, reason: str) -> None:
        for end in self._ends:
            end.abort(reason)

    def _explain(self, error: Broken) -> None:
        self._supervisor.wait_failure(VERDICT_S)
        raise Unavailable(f"the pipeline cannot go on, start it again: {error}")


def start(plan: Plan, factory: str, spec: dict[str, Any], deployment: Deployment) -> Pipeline:
    """Build every role where it lives: `factory`, "module:function", is called as f(role_name, spec) -> Role in that process.

    `spec` goes to the children as JSON. Raises BadInput if it is not, Unavailable if a stage does not come up.
    """
    try:
        json.dumps(spec, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"the roles' specification must be plain JSON: {error}") from None
    start_s = time.monotonic()
    pipeline = (InlinePipeline if plan.inline else ProcessPipeline)(plan, factory, spec, deployment)
    log.info("pipeline started in %.1f s", time.monotonic() - start_s)
    return pipeline
