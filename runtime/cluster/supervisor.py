"""The workers of a pipeline: starts, watches, replaces and ends them. None outlives its parent.

A worker reports over its control socket (heartbeats, what it works on) and by its output (log and traceback). A lost worker, dead
or hung, is killed at once; the others drop their connections but keep their roles. `restore` replaces it. Workers of other hosts are
not started but join, and cannot be killed if the network is down: they end by themselves then.
"""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from everface.core import env
from everface.core.errors import Unavailable
from everface.core.log import log
from everface.runtime.cluster.control import Build, Connect, Disconnect
from everface.runtime.cluster.remote_worker import JoinListener, RemoteWorker
from everface.runtime.cluster.watchdog import HANG_S
from everface.runtime.cluster.watched_worker import WatchedWorker
from everface.runtime.cluster.worker_process import WorkerProcess

TICK_S = 0.1
EXIT_S = 1.0  # for a process to end after it has closed its control socket
KILL_S = 5.0  # for a killed process to end
MOST_LOSSES, WITHIN_S = 3, 60.0  # more losses in that time have a cause that a restart does not fix


@dataclass(frozen=True)
class Source:
    """What the supervisor's thread reads from: `read` returns False at its end."""

    read: Callable[[], bool]
    close: Callable[[], None]


class Supervisor:
    """Keeps one worker for each of `builds`, the last `remote` of which join at `address`, where this process listens. Its thread calls `on_loss` with a sentence as soon as one is lost.

    timeout_s: for work whose usual time is not known. For one thread of the caller; `close` and `loss` for any.
    """

    def __init__(self, builds: Sequence[Build], timeout_s: float, on_loss: Callable[[str], None], remote: int = 0, address: tuple[str, int] = ("", 0)):
        self._builds, self._timeout_s, self._on_loss = builds, timeout_s, on_loss
        self.generation = 0  # of the connections
        self.loss_times_s: deque[float] = deque(maxlen=MOST_LOSSES + 1)
        self._failure: str | None = None  # final: the pipeline will not come back
        self._changed = threading.Condition()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self.workers: list[WatchedWorker] = []
        self._local = len(builds) - remote
        self._listener = JoinListener(address, env.token() or "") if remote else None
        if self._listener:
            self._selector.register(self._listener.socket, selectors.EVENT_READ, Source(self._accept, self._listener.socket.close))
            log.warning("%d stages run on other hosts: start everface join %s:%d there", remote, *address)
        try:
            for rank in range(len(builds)):
                self.workers.append(self._start(rank))
        except BaseException:
            self._kill_all()
            raise
        self._thread = threading.Thread(target=self._run, name="everface supervisor", daemon=True)
        self._thread.start()

    def wait_built(self, timeout_s: float) -> None:
        """Until every worker has built its roles. Raises Unavailable if one is lost or time runs out."""
        self._wait_all(lambda worker: worker.built, timeout_s, "had not built its roles")

    def connect(self, connect: Connect) -> None:
        """Have all workers connect again. `connect` is the caller's own command, that of the last rank."""
        self.generation = connect.generation
        for rank, worker in enumerate(self.workers):
            joined = worker.joined if isinstance(worker, RemoteWorker) else None
            device = f"cuda:{joined.join.device}" if joined and worker.build.device != "cpu" else worker.build.device
            address = joined.host if joined else connect.address
            worker.send(msgspec.structs.replace(connect, rank=rank, device=device, address=address))

    def wait_connected(self, timeout_s: float) -> None:
        """Until every worker has connected. Raises Unavailable if one is lost or time runs out."""
        self._wait_all(lambda worker: worker.generation == self.generation, timeout_s, "was not connected")

    @property
    def loss(self) -> str | None:
        """Why the pipeline is lost, as a sentence: the final failure, or the first worker that is lost and not replaced yet."""
        return self._failure or next((worker.loss for worker in self.workers if worker.loss), None)

    def wait_loss(self, timeout_s: float) -> str | None:
        """After a connection broke: wait for the supervisor to find a lost worker, and return `loss`."""
        with self._changed:
            self._changed.wait_for(lambda: self.loss is not None, timeout_s)
        return self.loss

    def restore(self) -> list[str]:
        """Replace lost workers; returns the names of the restarted stages. Raises Unavailable if it happens too often."""
        restarted: list[str] = []
        with self._changed:
            self.check()
            for rank, worker in enumerate(self.workers):
                if worker.loss:
                    self.workers[rank] = self._start(rank)
                    restarted.append(worker.name)
            if len(self.loss_times_s) > MOST_LOSSES and self.loss_times_s[-1] - self.loss_times_s[0] < WITHIN_S:
                self._fail(f"{MOST_LOSSES + 1} stages were lost within {WITHIN_S:g} s: fix the cause and start again")
        self.check()
        return restarted

    def check(self) -> None:
        """Raises Unavailable if the pipeline will not come back."""
        if self._failure:
            raise Unavailable(self._failure)

    def close(self, grace_s: float) -> None:
        """End all workers; they have `grace_s` to end by themselves, and are killed then. Whoever waits for them gets Unavailable."""
        with self._changed:
            self._closing = True
            self._fail("the pipeline is closed: start another")
            self._changed.notify_all()
        end_s = time.monotonic() + grace_s
        for worker in self.workers:
            worker.wait(max(0.0, end_s - time.monotonic()))
        self._kill_all()
        self._thread.join(KILL_S)
        if self._thread.is_alive():  # a worker is stuck in a driver
            return
        for key in list((self._selector.get_map() or {}).values()):  # None the second time
            key.data.close()  # of what listens, and of workers that have joined and found no stage to run
        self._selector.close()
        for worker in self.workers:
            worker.close()

    # inside

    def _start(self, rank: int) -> WatchedWorker:
        build = self._builds[rank]
        if rank >= self._local:
            return RemoteWorker(build, self._timeout_s)
        worker = WorkerProcess(build, self._timeout_s)
        assert worker.control is not None
        self._selector.register(worker.control, selectors.EVENT_READ, Source(lambda: self._read_reports(worker), worker.control.close))
        self._selector.register(worker.output, selectors.EVENT_READ, Source(worker.read_output, worker.output.close))
        return worker

    def _wait_all(self, ready: Callable[[WatchedWorker], bool], timeout_s: float, late: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.loss or all(map(ready, self.workers)), timeout_s):
                worker = next(worker for worker in self.workers if not ready(worker))
                self._lose(worker, f"{late} after {timeout_s:g} s: allow it more time or a faster disk", final=True)
        if loss := self.loss:
            raise Unavailable(loss)

    def _kill_all(self) -> None:
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.wait(KILL_S)  # one that is stuck in a driver is left to the system

    def _lose(self, worker: WatchedWorker, why: str, final: bool = False) -> None:
        """Kill it, in case it still runs, and have the others drop their connections to it."""
        if worker.loss or self._closing:
            return
        worker.kill()
        with self._changed:
            worker.loss = loss = f"stage {worker.name} {why}"
            for other in self._silent_with(worker):  # one loss, of a host
                other.kill()
                other.loss = f"stage {other.name} {why}"
                other.watchdog.stop()
            worker.watchdog.stop()
            if worker.traceback:  # a bug, not an everface error
                log.error("stage %s:\n%s", worker.name, worker.traceback)
            self.loss_times_s.append(time.monotonic())
            if not worker.built and (final or not worker.replaceable):
                self._fail(f"{loss}: fix that and start again")
            for other in self.workers:
                if not other.loss:
                    other.watchdog.stop()
                    other.send(Disconnect())
            self._changed.notify_all()
        log.warning("%s", loss)
        self._on_loss(loss)

    def _silent_with(self, lost: WatchedWorker) -> list[WatchedWorker]:
        """The workers of other hosts that are silent, if `lost` is one of them: the network is down."""
        now_s = time.monotonic()
        silent = [worker for worker in self.workers if worker.replaceable and worker.watchdog.silent_s(now_s) > HANG_S / 2]
        return [worker for worker in silent if worker is not lost] if lost in silent else []

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason

    def _run(self) -> None:
        """The supervisor's thread: read what workers report and print, and look for lost ones, until all have ended."""
        checked_s = 0.0
        while not (self._closing and all(worker.ended for worker in self.workers)):
            try:
                ready = self._selector.select(TICK_S)
            except OSError:  # a file was closed meanwhile: the next round has a new list
                continue
            progress, ended = self._progress(), False
            for key, _ in ready:
                source: Source = key.data
                if not source.read():
                    self._selector.unregister(key.fileobj)
                    source.close()
                    ended = True
            now_s = time.monotonic()
            if progress != self._progress():
                with self._changed:
                    self._changed.notify_all()
            if not ended and now_s < checked_s + TICK_S:  # ten reports per block come here, and most need nothing more
                continue
            checked_s = now_s
            self._attach_joined()
            for worker in list(self.workers):
                self._check_worker(worker, now_s)
            with self._changed:
                self._changed.notify_all()

    def _progress(self) -> list[int]:
        return [worker.built + worker.generation for worker in self.workers]

    def _accept(self) -> bool:
        assert self._listener is not None
        if accepted := self._listener.accept():
            control, read = accepted
            self._selector.register(control, selectors.EVENT_READ, Source(read, control.close))
        return True

    def _attach_joined(self) -> None:
        """Have workers that wait run the stages that wait. Only on the supervisor's thread, which reads from both."""
        for worker in self.workers:
            if self._listener and self._listener.waiting and isinstance(worker, RemoteWorker) and not worker.joined and not worker.ended:
                joined = self._listener.waiting.pop(0)
                source = Source(lambda worker=worker: self._read_reports(worker), joined.control.close)
                self._selector.modify(joined.control, selectors.EVENT_READ, source)
                worker.attach(joined)

    def _check_worker(self, worker: WatchedWorker, now_s: float) -> None:
        if worker.ended and not self._closing:
            self._lose(worker, worker.exit_description())
        elif reason := worker.watchdog.hang_reason(now_s):
            self._lose(worker, reason)

    def _read_reports(self, worker: WatchedWorker) -> bool:
        alive = worker.read_reports()
        if not alive and not self._closing:  # its process ends, or has ended: wait, so that this round sees it
            worker.wait(EXIT_S)
        return alive
