"""A pipeline of roles: messages in at the front, answers out at the end, never more blocks in flight than it is deep."""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch

from everface.core import env
from everface.core.block import Block
from everface.core.config import Deployment
from everface.core.errors import BadInput, Unavailable
from everface.core.log import log
from everface.runtime.transport.base import SLOTS, ChannelError, LocalChannel
from everface.runtime.planning.placement import DECODE, Plan
from everface.runtime.stage import Answer, Cancel, Failure, Message, Stage, Stop, Cancelled, answer_of, find_factory

if TYPE_CHECKING:  # they want msgspec, which an inline pipeline does without
    from everface.runtime.cluster.connections import Connections

START_S = 1800.0  # for children to import, load weights and build their roles
GRACE_S = 2.0  # for children to end by themselves
VERDICT_S = 5.0  # for the supervisor to find out why a channel broke
IDLE_S = 3600.0  # a stage's thread looks around so often
MESSAGES = 16  # answers to openings and closings that may wait besides blocks


class Lost(Exception):
    """A stage is gone, and all that was in flight: `recover` brings the pipeline back, without its sessions."""


class Pipeline(ABC):
    """Counts blocks between put and take: the governor."""

    def __init__(self, depth: int):
        self.depth = depth  # most blocks in flight
        self.in_flight = 0
        self._lock = threading.Lock()

    def room(self) -> int:
        """Blocks that may be put now."""
        return self.depth - self.in_flight

    def put(self, message: Message) -> None:
        """Give a message to the first role. RuntimeError for a block beyond the depth: ask room() first. Raises Lost."""
        if isinstance(message, Block) and self.room() <= 0:
            raise RuntimeError(f"block {message.index} is one more than the {self.depth} this pipeline may hold")
        self._count(isinstance(message, Block))
        try:
            self._put(message)
        except BaseException:
            self._count(-isinstance(message, Block))
            raise

    def take(self, timeout_s: float) -> Answer | None:
        """The next answer in order, None if none came in time or somebody called wake(). Raises Lost."""
        answer = self._take(timeout_s)
        self._count(-(isinstance(answer, Block | Cancelled) or (isinstance(answer, Failure) and answer.index >= 0)))
        return answer

    @abstractmethod
    def wake(self) -> None:
        """Have a take that waits in another thread answer None."""

    def recover(self) -> list[str]:
        """Bring back what is lost; names the stages that were begun anew. Raises Unavailable if that cannot be."""
        raise Unavailable("this pipeline cannot be brought back: start it again")

    def _count(self, change: int) -> None:
        with self._lock:
            self.in_flight += change

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """ChannelEnd every stage. Blocks in flight are lost. May be called twice."""

    @abstractmethod
    def _put(self, message: Message) -> None: ...

    @abstractmethod
    def _take(self, timeout_s: float) -> Answer | None: ...


class InlinePipeline(Pipeline):
    """Every role in the caller's process: the steps on one thread, the decoder on another, so that a block is decoded while the next
    one is denoised. On a GPU each thread has a stream of its own."""

    def __init__(self, plan: Plan, factory: str, spec: dict[str, Any], deployment: Deployment):
        parts = [[role for role in plan.roles if role != DECODE], [DECODE]]
        super().__init__(depth=len(parts))
        threads = deployment.threads or env.threads()
        if threads:
            torch.set_num_threads(threads)
        build = find_factory(factory)
        self._stages = [Stage({role: build(role, spec) for role in part}) for part in parts]
        if torch.device(deployment.device).type == "cuda":
            torch.cuda.synchronize()  # the roles were made on this thread's stream and run on others, which do not wait for it
        hears = [*(self._hearer(at) for at in range(len(parts))), None]
        self._channels = [LocalChannel(SLOTS if on_cancel else self.depth + MESSAGES, on_cancel) for on_cancel in hears]
        self._threads = [
            threading.Thread(target=self._work, args=(at, deployment.device), name=f"everface {'+'.join(part)}", daemon=True)
            for at, part in enumerate(parts)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for channel in self._channels:
            channel.abort("the pipeline is closed: start another")
        for thread in self._threads:
            thread.join()

    def wake(self) -> None:
        self._channels[-1].wake()

    def _hearer(self, at: int) -> Callable[[Cancel], None]:
        def on_cancel(notice: Cancel) -> None:
            self._stages[at].on_cancel(notice)
            self._channels[at + 1].put(notice)

        return on_cancel

    def _work(self, at: int, device: str) -> None:
        """One stage's thread."""
        stage, receiver, sender = self._stages[at], self._channels[at], self._channels[at + 1]
        stream = torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None
        try:
            with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
                while True:
                    message = receiver.take(IDLE_S)
                    if message is None:
                        continue
                    answer = stage.run(message)
                    del message
                    told = answer if sender is not self._channels[-1] else answer_of(answer)
                    if told is not None:
                        sender.put(told)
        except ChannelError:
            pass
        except BaseException as error:
            log.exception("a stage failed")
            for channel in self._channels:
                channel.abort(f"a device was lost ({type(error).__name__}: {str(error)[:200]}): start again")
        finally:
            stage.reset()

    def _put(self, message: Message) -> None:
        try:
            self._channels[0].put(message)
        except ChannelError as error:
            raise Unavailable(str(error)) from None

    def _take(self, timeout_s: float) -> Answer | None:
        try:
            return self._channels[-1].take(timeout_s)  # type: ignore[return-value]
        except ChannelError as error:
            raise Unavailable(str(error)) from None


class ProcessPipeline(Pipeline):
    """One child process a device; the caller's process is the last rank, which feeds the first and takes from the last."""

    def __init__(self, plan: Plan, factory: str, spec: dict[str, Any], deployment: Deployment):
        from everface.runtime.transport.selection import choose
        from everface.runtime.cluster.supervisor import Supervisor

        count = len(plan.devices)
        super().__init__(depth=count + 1)  # the stages, and the caller, with whom a block is while its answer is taken
        self._timeout_s = deployment.timeout_s
        self._slots = [SLOTS] * count + [
            self.depth + MESSAGES
        ]  # all in flight fits into the last channel: a slow viewer stalls no stage
        self._devices = devices_of(deployment.device, count)
        stream = [*self._devices, "cpu"]  # the caller takes frames to the host
        self._kinds = [choose(stream[rank - 1], stream[rank], same_process=False).kind for rank in range(count + 1)]
        self._channels: Connections | None = None
        self._folder = tempfile.mkdtemp(prefix="everface-")  # private to this user
        # equal thread counts give equal bits on every placement
        threads = deployment.threads or env.threads() or torch.get_num_threads()
        build = {"factory": factory, "spec": spec, "threads": threads}
        self._supervisor = Supervisor(plan, self._devices, build, self._timeout_s, self._abort)
        atexit.register(self.close)
        try:
            self._connect()
        except Lost as lost:
            self.close()
            raise Unavailable(str(lost)) from None
        except BaseException:
            self.close()
            raise
        log.info(
            "pipeline of %d processes with %d threads each: %s", count, threads, " | ".join("+".join(d) for d in plan.devices)
        )

    @property
    def processes(self) -> list[int]:
        """Process ids, upstream first."""
        return [child.process.pid for child in self._supervisor.children]

    def recover(self) -> list[str]:
        begun: list[str] = []
        while True:
            self._disconnect()
            begun += self._supervisor.restore()
            try:
                self._connect()
                return begun
            except Lost as lost:
                log.warning("lost again while recovering: %s", lost)

    def close(self) -> None:
        atexit.unregister(self.close)
        idle = self._channels is not None and not self.in_flight and not self._supervisor.lost()
        if idle and self._channels is not None:
            with contextlib.suppress(ChannelError):
                self._channels.sender.put(Stop())
        self._supervisor.close(GRACE_S if idle else 0.0)
        self._disconnect()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wake(self) -> None:
        channels = self._channels
        if channels is not None:
            channels.receiver.wake()

    def _connect(self) -> None:
        """Wait for the children's roles, then wait_connected them all. Raises Lost."""
        from everface.runtime.cluster.connections import JOIN_S, Connections
        from everface.runtime.cluster.control import Join

        supervisor, world = self._supervisor, len(self._supervisor.children) + 1
        try:
            supervisor.wait_built(START_S)
            ours = Join(
                supervisor.generation + 1, world - 1, world, self._folder, "cpu", self._kinds, self._slots, self._timeout_s
            )  # fmt: skip
            supervisor.order_join(ours)
            self._channels = Connections(ours, lambda _: None)
            self._channels.wait_connected()
            supervisor.wait_joined(JOIN_S)
        except (ChannelError, Unavailable) as error:
            self._lose(str(error))
        with self._lock:
            self.in_flight = 0

    def _disconnect(self) -> None:
        channels, self._channels = self._channels, None
        if channels is not None:
            channels.close()

    def _abort(self, reason: str) -> None:
        channels = self._channels
        if channels is not None:
            channels.abort(reason)

    def _put(self, message: Message) -> None:
        channels = self._channels
        try:
            if channels is None:
                raise ChannelError("the pipeline is not connected")
            channels.sender.put(message)
        except ChannelError as error:
            self._lose(str(error))

    def _take(self, timeout_s: float) -> Answer | None:
        channels = self._channels
        try:
            if channels is None:
                raise ChannelError("the pipeline is closed")
            return channels.receiver.take(timeout_s)  # type: ignore[return-value]
        except ChannelError as error:
            self._lose(str(error))

    def _lose(self, what: str) -> NoReturn:
        """Raise Lost with the supervisor's verdict, or Unavailable when that is final."""
        verdict = self._supervisor.wait_loss(VERDICT_S if self._channels is not None else 0.0)
        self._supervisor.check()
        raise Lost(verdict or what)


def devices_of(device: str, count: int) -> list[str]:
    """Where each of `count` stages lives: on GPUs of their own as far as there are so many, in turn from the first."""
    if device != "cuda":
        return [device] * count
    return [f"cuda:{rank % max(1, torch.cuda.device_count())}" for rank in range(count)]


def start(plan: Plan, factory: str, spec: dict[str, Any], deployment: Deployment) -> Pipeline:
    """Build every role where it lives: `factory`, "module:function", is called as f(role_name, spec) -> Role in that process.

    `spec` goes to the children as plain data. Raises BadInput if it is not, Unavailable if a stage does not come up.
    """
    try:
        json.dumps(spec, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"the roles' specification must be plain JSON: {error}") from None
    start_s = time.monotonic()
    pipeline = (InlinePipeline if plan.inline else ProcessPipeline)(plan, factory, spec, deployment)
    log.info("pipeline started in %.1f s", time.monotonic() - start_s)
    return pipeline
