"""Pipecat's own pipeline, runner and output transport around our service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.live.faces import live_in_process

pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.pipeline.worker import PipelineWorker
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from tests.integrations.pipeline import Above, started
from tests.runtime import toy

from everface.integrations.pipecat import EverfaceVideoService
from everface.live.session import LiveSession
from everface.runtime.messages import Tensors
from everface.runtime.model import Window

HZ = 24_000
Said = list[tuple[float, Any]]


def speech(seconds: float) -> np.ndarray:
    return (8000 * np.sin(np.arange(int(HZ * seconds)) * 0.05) + 9000).astype(np.int16)


async def say(worker: PipelineWorker, seconds: float, *texts: str) -> None:
    """As text-to-speech does: faster than real time, each text before its audio."""
    await worker.queue_frame(TTSStartedFrame())
    for samples, text in zip(np.array_split(speech(seconds), len(texts)), texts):
        await worker.queue_frame(TTSTextFrame(text, "word"))
        for piece in np.array_split(samples, max(1, len(samples) * 50 // HZ)):
            await worker.queue_frame(TTSAudioRawFrame(piece.tobytes(), HZ, 1))
    await worker.queue_frame(TTSStoppedFrame())


def in_a_pipeline(play: Callable[[PipelineWorker, Said, LiveSession], Awaitable[None]]) -> Said:
    """What came out below the service and above it, with its time."""
    out: Said = []

    async def run() -> None:
        def take(frame: Any) -> None:
            out.append((time.monotonic(), frame))

        async with asyncio.timeout(60):
            worker, running = await started(Above(take), EverfaceVideoService(session), take)
            await play(worker, out, session)
            await running

    with live_in_process() as session:
        asyncio.run(run())
        assert session.closed
    return out


def only(out: Said, *kinds: type) -> list[Any]:
    return [frame for _, frame in out if isinstance(frame, kinds)]


def audio(out: Said) -> np.ndarray:
    played = np.frombuffer(b"".join(f.audio for f in only(out, SpeechOutputAudioRawFrame)), np.int16)
    return played[played != 0]


def test_frames_keep_their_place_between_the_audio() -> None:
    async def play(worker: PipelineWorker, out: Said, _: LiveSession) -> None:
        await say(worker, 1.2, "one", "two")
        await worker.queue_frame(EndFrame())

    out = in_a_pipeline(play)
    assert np.array_equal(audio(out), speech(1.2))
    line = [f for f in only(out, TTSStartedFrame, TTSTextFrame, TTSStoppedFrame, SpeechOutputAudioRawFrame, EndFrame)]
    marks = [i for i, f in enumerate(line) if not isinstance(f, SpeechOutputAudioRawFrame)]
    assert [type(line[i]) for i in marks] == [TTSStartedFrame, TTSTextFrame, TTSTextFrame, TTSStoppedFrame, EndFrame]
    assert marks[:2] == [0, 1] and 14 <= marks[2] - marks[1] <= 17 and 14 <= marks[3] - marks[2] <= 17 and marks[4] == marks[3] + 1
    images = only(out, OutputImageRawFrame)
    assert images[0].size == (8, 8) and images[0].format == "RGB" and [f.pts for f in images[:2]] == [0, 40_000_000]


def test_an_interruption_drops_what_was_not_said() -> None:
    async def play(worker: PipelineWorker, out: Said, _: LiveSession) -> None:
        await say(worker, 6.0, "a", "long", "story")
        while len(audio(out)) < 0.6 * HZ:
            await asyncio.sleep(0.01)
        await worker.queue_frame(InterruptionFrame())
        await asyncio.sleep(0.5)
        await say(worker, 0.5, "sorry")
        await worker.queue_frame(EndFrame())

    out = in_a_pipeline(play)
    (at,) = [i for i, (_, f) in enumerate(out) if isinstance(f, InterruptionFrame)]
    assert 0.5 * HZ < len(audio(out[:at])) < 2.0 * HZ
    assert np.array_equal(audio(out[:at]), speech(6.0)[: len(audio(out[:at]))])
    assert np.array_equal(audio(out[at:]), speech(0.5))
    assert [f.text for f in only(out, TTSTextFrame)] == ["a", "sorry"]
    assert len(only(out, TTSStoppedFrame)) == 1 and len(only(out[at:], OutputImageRawFrame)) > 15  # and the face stays alive


def test_cancel_closes_the_session_at_once() -> None:
    async def play(worker: PipelineWorker, _: Said, __: LiveSession) -> None:
        await say(worker, 5.0, "never")
        began_s = time.monotonic()
        await worker.cancel()
        assert time.monotonic() - began_s < 4.5

    assert len(audio(in_a_pipeline(play))) < HZ


def test_a_failed_session_says_so_and_leaves_the_voice() -> None:
    async def play(worker: PipelineWorker, out: Said, session: LiveSession) -> None:
        await asyncio.to_thread(session.close)
        await say(worker, 0.2, "unseen")
        await worker.queue_frame(EndFrame())

    out = in_a_pipeline(play)
    (error,) = only(out, ErrorFrame)
    assert "the avatar stopped: the live session is closed" in error.error
    assert b"".join(f.audio for f in only(out, TTSAudioRawFrame)) == speech(0.2).tobytes()
    assert [f.text for f in only(out, TTSTextFrame)] == ["unseen"] and len(only(out, TTSStoppedFrame, EndFrame)) == 2


def test_pipecats_transport_shows_it_at_its_pace() -> None:
    shown: list[float] = []
    played: list[bytes] = []

    class Transport(BaseOutputTransport):
        async def start(self, frame: StartFrame) -> None:
            await super().start(frame)
            await self.set_transport_ready(frame)

        async def write_video_frame(self, frame: OutputImageRawFrame) -> bool:
            shown.append(time.monotonic())
            return True

        async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
            played.append(frame.audio)
            await asyncio.sleep(frame.num_frames / frame.sample_rate)
            return True

    async def run() -> None:
        params = TransportParams(
            audio_out_enabled=True, audio_out_sample_rate=HZ, video_out_enabled=True, video_out_is_live=True, video_out_width=8,
            video_out_height=8, video_out_framerate=25,
        )  # fmt: skip
        async with asyncio.timeout(60):
            worker, running = await started(EverfaceVideoService(session), Transport(params))
            await say(worker, 1.5, "hello")
            await asyncio.sleep(2.5)
            await worker.queue_frame(EndFrame())
            await running

    with live_in_process() as session:
        asyncio.run(run())
    samples = np.frombuffer(b"".join(played), np.int16)
    assert np.array_equal(samples[samples != 0], speech(1.5))
    assert 20 < len(shown) / (shown[-1] - shown[0]) < 30


class Listener(toy.ToySession):
    """Hears in the second channel, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.format = replace(self.format, audio_channels=2, user_audio=True)
        self.kept: list[np.ndarray] = []

    def prepare(self, index: int, window: Window) -> Tensors:
        self.kept.append(window.audio_S[1].numpy())
        return super().prepare(index, replace(window, audio_S=window.audio_S[0]))


def test_a_model_that_listens_hears_the_user() -> None:
    model, passed = Listener(), list[Any]()

    async def run() -> None:
        worker, running = await started(EverfaceVideoService(session), passed.append)
        for _ in range(100):
            await worker.queue_frame(InputAudioRawFrame(speech(0.02).tobytes(), HZ, 1))
            await asyncio.sleep(0.02)
        await worker.queue_frame(EndFrame())
        await running

    with live_in_process(model=model) as session:
        asyncio.run(run())
    assert np.concatenate(model.kept).max() > 0.2
    assert sum(isinstance(f, InputAudioRawFrame) for f in passed) == 100
