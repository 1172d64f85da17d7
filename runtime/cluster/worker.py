"""Runs in a worker process of a pipeline: builds the roles of its device once, and runs them through any number of connections.

Three threads: the main one builds, connects, and receives, runs and sends messages; one receives the supervisor's commands; one
sends heartbeats. The end of the supervisor's process ends this one.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

import torch

from everface.core.errors import EverfaceError
from everface.core.log import start_log
from everface.runtime.cluster.connections import Connections
from everface.runtime.cluster.control import (
    Build,
    Built,
    Connect,
    Connected,
    ControlSocket,
    Disconnect,
    Disconnected,
    Heartbeat,
    WorkFinished,
    WorkStarted,
)
from everface.runtime.cluster.watchdog import BLOCK
from everface.runtime.messages import Block, Cancel, OpenSession, Stop, reply_of
from everface.runtime.registry import load_model
from everface.runtime.stage import Stage
from everface.runtime.transport.base import ChannelError

HEARTBEAT_S = 0.25
IDLE_S = 2.0  # then a stage looks whether its device is still there


class Worker:
    """The state that the three threads share."""

    def __init__(self, control: ControlSocket):
        self._control = control
        self._builds: queue.Queue[Build] = queue.Queue(1)
        self._connects: queue.Queue[Connect] = queue.Queue(8)
        self._connections: Connections | None = None
        self._generation = 0  # connections of an older one are to be dropped
        self._parent = os.getppid()

    def receive_commands(self) -> NoReturn:
        """Until the supervisor is gone, which ends this process."""
        while (commands := self._control.receive()) is not None:
            for command in commands:
                if isinstance(command, Build):
                    self._builds.put(command)
                elif isinstance(command, Connect):
                    self._generation = command.generation
                    self._abort_connections("the pipeline is connected again")
                    self._connects.put(command)
                elif isinstance(command, Disconnect):
                    self._abort_connections("another stage was lost")
        os._exit(3)

    def send_heartbeats(self) -> NoReturn:
        """Until the parent is gone. Its process is checked, because a fork of it may keep the control socket open."""
        while os.getppid() == self._parent:
            self._control.send(Heartbeat())
            time.sleep(HEARTBEAT_S)
        os._exit(3)

    def work(self) -> None:
        """Build, then connect and serve until a Stop. Raises what building the roles raises."""
        build = self._builds.get()
        torch.set_num_threads(build.threads)
        if torch.device(build.device).type == "cuda":
            torch.cuda.set_device(build.device)  # kernels are launched on the current device, whichever their tensors are on
        model = load_model(build.model)
        stage = Stage({role: model.build_role(role, {**build.spec, "device": build.device}) for role in build.roles}, build.device)
        self._control.send(Built())
        while True:
            connect = self._connects.get()
            stage.reset()
            if connect.generation != self._generation:
                continue
            try:
                with Connections(connect, stage.on_cancel) as connections:
                    self._connections = connections
                    if connect.generation != self._generation:
                        continue
                    connections.wait_connected()
                    self._control.send(Connected(connect.generation))
                    self._serve(stage, connections, connect.rank == connect.world - 2)
                    return
            except ChannelError as error:  # the fault is another stage's: the supervisor knows, or will find out
                self._control.send(Disconnected(str(error)))
            finally:
                self._connections = None

    def _serve(self, stage: Stage, connections: Connections, last: bool) -> None:
        """Receive, run and send, until a Stop. The last stage sends replies only, as the caller is next."""
        while True:
            message = connections.receiver.receive(IDLE_S)
            if message is None:
                self._control.send(WorkStarted("a check of its device", 0, -1))
                stage.check_device()
                self._control.send(WorkFinished())
                continue
            if isinstance(message, Stop):
                if not last:
                    connections.sender.send(message)
                return
            if isinstance(message, Block):
                self._control.send(WorkStarted(BLOCK, message.session, message.index))
            else:
                self._control.send(WorkStarted("an opening" if isinstance(message, OpenSession) else "a message", 0, -1))
            result = stage.run(message, connections.sender.send if last else None)
            del message
            self._control.send(WorkFinished())  # before it is sent: if the next stage does not receive it, that one is late
            if last:
                reply = reply_of(result)
                if reply is not None:
                    connections.sender.send(reply)
            elif not isinstance(result, Cancel):
                connections.sender.send(result)
            if stage.unsettled:
                self._control.send(WorkStarted("what a block has left", 0, -1))
                stage.settle()
                self._control.send(WorkFinished())

    def _abort_connections(self, reason: str) -> None:
        connections = self._connections
        if connections is not None:
            connections.abort(reason)


def main(fd: int) -> NoReturn:
    """`fd`: this end of the control socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the supervisor decides when this process ends
        signal.signal(number, signal.SIG_IGN)
    worker = Worker(ControlSocket(socket.socket(fileno=fd)))
    for run, name in ((worker.receive_commands, "everface commands"), (worker.send_heartbeats, "everface heartbeats")):
        threading.Thread(target=run, name=name, daemon=True).start()
    try:
        start_log()
        worker.work()
    except EverfaceError as error:
        _exit(2, str(error))
    except BaseException:
        _exit(1, traceback.format_exc())
    _exit(0)


def _exit(code: int, output: str = "") -> NoReturn:
    """End the process now: threads that wait on sockets would keep an ordinary exit waiting."""
    if output:
        print(output, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
