"""A Pipecat pipeline around one processor, run by Pipecat's own runner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pipecat.frames.frames import Frame, StartFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner


class Sink(FrameProcessor):
    """Gives every frame that comes down to a function."""

    def __init__(self, take: Callable[[Frame], None]) -> None:
        super().__init__()
        self.take = take

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM and not isinstance(frame, StartFrame):
            self.take(frame)
        await self.push_frame(frame, direction)


class Above(FrameProcessor):
    """Gives every frame that goes up to a function."""

    def __init__(self, take: Callable[[Frame], None]) -> None:
        super().__init__()
        self.take = take

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == FrameDirection.UPSTREAM:
            self.take(frame)
        await self.push_frame(frame, direction)


async def started(*processors: FrameProcessor | Callable[[Any], None]) -> tuple[PipelineWorker, asyncio.Task[None]]:
    """The worker of a running pipeline, and the task of its runner. Functions become sinks."""
    line = [p if isinstance(p, FrameProcessor) else Sink(p) for p in processors]
    worker = PipelineWorker(Pipeline(line), cancel_on_idle_timeout=False, enable_rtvi=False)
    ready = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def on_started(*_: Any) -> None:
        ready.set()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await asyncio.wait_for(ready.wait(), 10.0)
    return worker, running
