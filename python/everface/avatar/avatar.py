"""The public API: an Avatar is a checkpoint on devices, a Session is one endless stream of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from everface.core.config import LIVE_WINDOW_S, Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.live.session import LiveSession
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.models.opened import open_model
from everface.runtime.model import BlockFormat
from everface.runtime.planning.placement import place
from everface.runtime.registry import path_of
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session
from everface.runtime.start import start_pipeline


class Avatar:
    """Loads a checkpoint (the bundled one without `weights`) and opens sessions on it.

    The stages start with the first session, for that session's sampler, and stay up until `close`, or until the program's main thread ends;
    sessions share them. Thread-safe but for the first `open`, which starts the stages. Raises BadWeights.

        with Avatar() as avatar, avatar.open("face.png") as session:
            session.push_audio(audio_S)
    """

    def __init__(self, weights: Path | None = None, lora: Path | None = None, deployment: Deployment | None = None) -> None:
        self.deployment = deployment or Deployment()
        if self.deployment.threads:
            torch.set_num_threads(self.deployment.threads)
        self.model = open_model(Path(weights or DEFAULT_WEIGHTS), lora, self.deployment)
        self.scheduler: Scheduler | None = None
        self.sampler = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(
        self, image: Path | str | torch.Tensor, stream: StreamConfig | None = None, name: Path | str | None = None, *, parts: bool = False
    ) -> Session:  # fmt: skip
        """A session that shows `image` speaking: a file, or float32 [3, H, W] in -1..1 of the right size.

        `name`: of the image in a warning; by default its path. `parts`: a few frames at a time, as they are decoded, which is sooner by most of the time that
        decoding takes and, on a GPU, more work; else a block's frames come together.

        Push 16 kHz mono float32 audio into it, [speakers, S] if `stream` has several, poll uint8 frames [T, H, W, 3] at `format.fps` out of it. Raises BadInput for an image or
        configuration that cannot be used, Unavailable when there are too many sessions or a stage does not start.
        """
        stream = stream or StreamConfig()
        session = self.model.session(Path(image) if isinstance(image, str) else image, stream)
        if session.remark:
            name = image if name is None and not isinstance(image, torch.Tensor) else name
            log.warning("%s%s", "" if name is None else f"{name}: ", session.remark)
        return self.start(stream).open_session(session, parts=parts).wait_open()

    def open_live(self, image: Path | str | torch.Tensor, stream: StreamConfig | None = None, **options: Any) -> LiveSession:
        """A live session: audio of any rate in, paced frames with that audio out, and a face that stays alive in pauses.

        `options`: those of `LiveSession` (idle, paced, playback_hz, outbox_s, jitter_s, cheaper). Raises as `open`.
        """
        stream = stream or StreamConfig()
        if stream.audio_window_s is None:
            stream = replace(stream, audio_window_s=LIVE_WINDOW_S)
        if options.get("paced", True) and not isinstance(image, torch.Tensor):
            stream = replace(stream, size=self.model.live_size(stream, self.deployment))
        session = self.open(image, stream, parts=options.get("paced", True))
        try:
            return LiveSession(session, **{"cheaper": self.model.cheaper(stream), **options})
        except BaseException:
            session.close()
            raise

    def live_size(self, stream: StreamConfig | None = None) -> tuple[int, int] | None:
        """(height, width) of a paced live session's frames, for who must know it before one is open; None where it follows the image."""
        stream = stream or StreamConfig()
        return self.model.live_size(stream, self.deployment) or self.model.stream_size(stream)

    @property
    def format(self) -> BlockFormat:
        """Frame rate, sizes of blocks, and sample rate, the same for every session; a session's audio window and channels may be others."""
        return self.model.format

    def fit(self, image: Path, stream: StreamConfig) -> torch.Tensor:
        """Read an image and bring it to the size of the stream: float32 [3, H, W] in -1..1, as `open` takes it. Raises BadInput."""
        return self.model.fit(image, stream)

    def start(self, stream: StreamConfig) -> Scheduler:
        """Start the stages, once."""
        if self.scheduler is None:
            placement = place(self.model.roles(stream), self.deployment.placement)
            log.info("placement %s, sampler %s, %d fps", placement, stream.sampler, self.format.fps)
            pipeline = start_pipeline(placement, path_of(self.model.name), self.model.spec(stream), self.deployment)
            self.scheduler, self.sampler = Scheduler(pipeline, self.deployment.sessions), stream.sampler
        elif stream.sampler != self.sampler:
            raise BadInput(f"this avatar runs the {self.sampler} sampler: close it before opening a {stream.sampler} session")
        return self.scheduler

    def close(self) -> None:
        """Stop the stages, within seconds. Sessions still open fail with Unavailable, which wakes whoever waits for them. From any thread."""
        scheduler, self.scheduler = self.scheduler, None
        if scheduler is not None:
            scheduler.close()
