"""A child process of a pipeline: builds the roles of its device once, and runs them through any number of connections.

Three threads: the main one builds, connects, and takes, runs, gives; one listens to the parent; one tells it twice a heartbeat's
time that this process lives. The end of the parent ends this process.
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
from everface.runtime.messages import Block, Cancel, OpenSession, Stop, reply_of
from everface.runtime.registry import load_model
from everface.runtime.stage import Stage
from everface.runtime.transport.base import ChannelError

BEAT_S = 0.25

class Worker:
    """The state that the three threads share."""

    def __init__(self, channel: ControlSocket):
        self.channel = channel
        self.builds: queue.Queue[Build] = queue.Queue(1)
        self._connects: queue.Queue[Connect] = queue.Queue(8)
        self._connections: Connections | None = None
        self._generation = 0  # connections of an older one are to be dropped
        self._parent = os.getppid()

    def listen(self) -> NoReturn:
        """OnCancel the parent's orders until it is gone."""
        while (orders := self.channel.read()) is not None:
            for order in orders:
                if isinstance(order, Build):
                    self.builds.put(order)
                elif isinstance(order, Connect):
                    self._generation = order.generation
                    self._drop("the pipeline is connected anew")
                    self._connects.put(order)
                elif isinstance(order, Disconnect):
                    self._drop("another stage was lost")
        os._exit(3)

    def beat(self) -> NoReturn:
        """Tell of life. A fork of the parent may hold the socket open, so its process is asked after too."""
        while os.getppid() == self._parent:
            self.channel.send(Heartbeat())
            time.sleep(BEAT_S)
        os._exit(3)

    def work(self) -> None:
        """Build, then connect and serve until reply to stop."""
        build = self.builds.get()
        torch.set_num_threads(build.threads)
        if torch.device(build.device).type == "cuda":
            torch.cuda.set_device(build.device)  # kernels are launched on the current one, wherever their tensors are
        model = load_model(build.model)
        stage = Stage({role: model.build_role(role, {**build.spec, "device": build.device}) for role in build.roles})
        self.channel.send(Built())
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
                    self.channel.send(Connected(connect.generation))
                    self._serve(stage, connections, connect.rank == connect.world - 2)
                    return
            except ChannelError as error:  # another stage is the culprit: the parent knows, or will find out
                self.channel.send(Disconnected(str(error)))
            finally:
                self._connections = None

    def _serve(self, stage: Stage, connections: Connections, last: bool) -> None:
        """Take, run, give, until Stop. The parent, after the last stage, wants answers only."""
        while True:
            message = connections.receiver.receive(3600.0)
            if message is None:
                continue
            if isinstance(message, Stop):
                if not last:
                    connections.sender.send(message)
                return
            if isinstance(message, Block):
                self.channel.send(WorkStarted("block", message.session, message.index))
            else:
                self.channel.send(WorkStarted("an opening" if isinstance(message, OpenSession) else "a message", 0, -1))
            result = stage.run(message)
            del message
            self.channel.send(WorkFinished())  # before it is given: if the next stage does not take it, that one is late
            if last:
                reply = reply_of(result)
                if reply is not None:
                    connections.sender.send(reply)
            elif not isinstance(result, Cancel):
                connections.sender.send(result)

    def _drop(self, reason: str) -> None:
        connections = self._connections
        if connections is not None:
            connections.abort(reason)


def main(fd: int) -> NoReturn:
    """`fd`: this end of the control socket."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides, and its end is our end
        signal.signal(number, signal.SIG_IGN)
    worker = Worker(ControlSocket(socket.socket(fileno=fd)))
    for run in (worker.listen, worker.beat):
        threading.Thread(target=run, name=run.__name__, daemon=True).start()
    try:
        start_log()
        worker.work()
    except EverfaceError as error:
        _leave(2, str(error))
    except BaseException:
        _leave(1, traceback.format_exc())
    _leave(0)


def _leave(code: int, words: str = "") -> NoReturn:
    """ChannelEnd now: threads that wait on sockets are not waited for."""
    if words:
        print(words, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
