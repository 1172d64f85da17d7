"""Every role in the caller's process, on one thread, or on more where the model says so: then consecutive blocks overlap.

On a GPU each thread has a stream of its own.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from everface.core import env
from everface.core.config import Deployment
from everface.core.errors import Unavailable
from everface.core.log import log
from everface.runtime.exit_hook import close_at_exit
from everface.runtime.messages import NEVER, Cancel, Message, Reply, reply_of
from everface.runtime.model import PIPELINE
from everface.runtime.pipeline import MOST_CONTROL, Pipeline
from everface.runtime.planning.placement import Placement
from everface.runtime.registry import load_model
from everface.runtime.stage import Stage
from everface.runtime.transport.base import SLOTS, ChannelError
from everface.runtime.transport.local import LocalChannel

IDLE_S = 2.0  # then a stage's thread looks whether its device is still there
STOP_S = 10.0  # for the stages' threads to end the role that they run


class InlinePipeline(Pipeline):
    """`model` is the import path of a registered model, `spec` plain data for its roles."""

    def __init__(self, placement: Placement, model: str, spec: dict[str, Any], deployment: Deployment):
        parts = placement.threads
        super().__init__(depth=max(2, len(parts)))
        threads = deployment.threads or env.threads()
        if threads:
            torch.set_num_threads(threads)
        build, spec = load_model(model).build_role, {**spec, PIPELINE: secrets.token_hex(8)}
        device = torch.device(deployment.device)
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():  # Triton launches on the current one
            self._stages = [Stage({role: build(role, spec) for role in part}, deployment.device) for part in parts]
            if device.type == "cuda":
                torch.cuda.synchronize()  # the roles were made on this thread's stream and run on others, which do not wait for it
        self._channels = [LocalChannel(SLOTS, self._cancel_handler(at)) for at in range(len(parts))]
        self._channels.append(LocalChannel(self.depth + MOST_CONTROL, signal=self.signal))
        self._threads = [
            threading.Thread(target=self._work, args=(at, deployment.device), name=f"everface {'+'.join(part)}", daemon=True)
            for at, part in enumerate(parts)
        ]
        for thread in self._threads:
            thread.start()
        self._forget = close_at_exit(self.close)

    def close(self) -> None:
        """As declared. A stage whose role takes longer than STOP_S is left behind with a warning."""
        end_s = time.monotonic() + STOP_S
        for stage in self._stages:
            for session in list(stage.sessions):
                stage.on_cancel(Cancel(session, NEVER))  # a block being run is dropped before its next role
        for channel in self._channels:
            channel.abort("the pipeline is closed: start another")
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        if running := [thread.name for thread in self._threads if thread.is_alive()]:
            log.warning("%s did not end within %g s: it ends with the process", ", ".join(running), STOP_S)
        self._forget()

    def _cancel_handler(self, at: int) -> Callable[[Cancel], None]:
        def on_cancel(cancel: Cancel) -> None:
            self._stages[at].on_cancel(cancel)
            self._channels[at + 1].send(cancel)

        return on_cancel

    def _work(self, at: int, device: str) -> None:
        """One stage's thread."""
        stage, receiver, sender = self._stages[at], self._channels[at], self._channels[at + 1]
        last = sender is self._channels[-1]
        stream = torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None
        try:
            with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
                while True:
                    message = receiver.receive(IDLE_S)
                    if message is None:
                        if not any(any(other.sessions) for other in self._stages):  # with one, its next block finds out
                            stage.check_device()
                        continue
                    result = stage.run(message, sender.send if last else None)
                    del message
                    passed = reply_of(result) if last else result
                    if passed is not None:
                        sender.send(passed)
                    stage.settle()
        except ChannelError:
            pass
        except BaseException as error:
            log.exception("a stage failed")
            for channel in self._channels:
                channel.abort(f"a device was lost ({type(error).__name__}: {str(error)[:200]}): start again")
        finally:
            stage.reset()

    def _send(self, message: Message) -> None:
        try:
            self._channels[0].send(message)
        except ChannelError as error:
            raise Unavailable(str(error)) from None

    def _receive(self) -> Reply | None:
        try:
            return self._channels[-1].receive(0.0)  # type: ignore[return-value]  # the last stage passes replies only
        except ChannelError as error:
            raise Unavailable(str(error)) from None
