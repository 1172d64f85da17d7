"""Pipelines of real processes: equal bits on every placement, bounded, and errors that say what is wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
from tests.runtime import toy
from tests.runtime.cluster.toy_pipeline import alive, assert_gone, drain, start_on, start_processes, worker_pids

from everface.core.config import Deployment
from everface.core.errors import BadInput, Unavailable
from everface.runtime.cluster.process_pipeline import ProcessPipeline
from everface.runtime.messages import Block, Cancelled, Reply
from everface.runtime.pipeline import Pipeline
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session
from everface.runtime.start import start_pipeline

SPEECH = {12: toy.speech(12 * 0.48 - 0.1), 40: toy.speech(40 * 0.48 - 0.3)}  # audio for that many blocks


def render(pipeline: Pipeline, blocks: int, **options: Any) -> torch.Tensor:
    with toy.open_session(pipeline, **options) as s:
        played = toy.play(s, SPEECH[blocks])
    assert [b.index for b in played] == list(range(blocks))
    return torch.cat([b.frames_THW3 for b in played])


@pytest.fixture(scope="module")
def references() -> dict[int, torch.Tensor]:
    with start_on("inline") as pipeline:
        videos = {blocks: render(pipeline, blocks) for blocks in SPEECH}
        plain = render(pipeline, 12, refresh_at=None)
    same = torch.equal(videos[12][:48], plain[:48])
    assert same and not torch.equal(videos[12][48:], plain[48:])  # the update matters from block 4
    return videos


def render_both(pipeline: ProcessPipeline, references: dict[int, torch.Tensor]) -> list[int]:
    """Both lengths equal the reference on this placement; returns its process ids."""
    for blocks, reference in references.items():
        video = render(pipeline, blocks)
        assert torch.equal(video, reference), f"{pipeline.depth} processes differ over {blocks} blocks"
    return pipeline.processes


def render_two_at_once(pipeline: Pipeline, references: dict[int, torch.Tensor]) -> None:
    """Two callers whose blocks interleave: each gets what it would get alone. Closes the pipeline."""
    drain(pipeline)
    scheduler = Scheduler(pipeline)
    try:
        sessions = [toy.open_at(scheduler).wait_open() for _ in SPEECH]
        videos: dict[int, torch.Tensor] = {}

        def play(s: Session, blocks: int) -> None:
            videos[blocks] = torch.cat([b.frames_THW3 for b in toy.play(s, SPEECH[blocks])])

        threads = [threading.Thread(target=play, args=(s, blocks)) for s, blocks in zip(sessions, SPEECH)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(videos[blocks], references[blocks]) for blocks in SPEECH)
        end_s = sessions[0].timeline.blocks[-1].delivered_s
        assert end_s and sessions[1].timeline.blocks[0].sent_s < end_s  # they did overlap
    finally:
        scheduler.close()


def test_two_sessions_inline(references: dict[int, torch.Tensor]) -> None:
    render_two_at_once(start_on("inline"), references)


def test_one_process_and_two_sessions(references: dict[int, torch.Tensor]) -> None:
    pipeline = start_processes(1)
    pids = render_both(pipeline, references)
    render_two_at_once(pipeline, references)
    assert_gone(pids)


def test_two_processes(references: dict[int, torch.Tensor]) -> None:
    with start_processes(2) as pipeline:
        pids = render_both(pipeline, references)
    assert_gone(pids)


def test_three_processes(references: dict[int, torch.Tensor]) -> None:
    with start_processes(3) as pipeline:
        pids = render_both(pipeline, references)
    assert_gone(pids)


def test_four_processes_and_too_many_losses(references: dict[int, torch.Tensor]) -> None:
    with start_processes(4) as pipeline:
        pids = render_both(pipeline, references)
        with toy.open_session(pipeline) as s:
            pipeline.supervisor.loss_times_s.extend([time.monotonic()] * 3)
            os.kill(pids[1], signal.SIGKILL)
            with pytest.raises(Unavailable, match=r"^4 stages were lost within 60 s: fix the cause"):
                toy.play(s, toy.speech(9.0))
            with pytest.raises(Unavailable, match="fix the cause"):
                toy.open_session(pipeline)
    assert_gone(pids)


def test_five_processes_interruption_and_back_pressure(
    references: dict[int, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_processes(5) as pipeline:
        pids = render_both(pipeline, references)
        assert pipeline.depth == 6
        with toy.open_session(pipeline, params={"slow_role": "decode", "slow_s": 0.2}, refresh_at=None) as s:
            replies: list[Reply | None] = []
            receive = pipeline.receive

            def record() -> Reply | None:
                replies.append(receive())
                return replies[-1]

            monkeypatch.setattr(pipeline, "receive", record)
            toy.push(s, toy.speech(10.0))
            in_flight = []
            for _ in range(20):
                in_flight.append(pipeline.in_flight)
                time.sleep(0.02)
                toy.poll(s)
            assert max(in_flight) == 6  # full, and no further
            replies.clear()
            assert s.interrupt() == 1
            pusher = threading.Thread(target=lambda: (s.push_audio(toy.speech(0.5)), s.end_segment()))
            pusher.start()
            blocks = toy.frames(s)
            pusher.join()
            assert [(b.turn, b.pts) for b in blocks] == [(1, 160_000), (1, 160_000 + 7680)]
            old = [r for r in replies if isinstance(r, Block | Cancelled) and r.revision == 0]
            assert len(old) == 6 and sum(isinstance(r, Cancelled) for r in old) >= 3  # what waited was not decoded
        drain(pipeline)
        assert pipeline.in_flight == 0
        assert torch.equal(render(pipeline, 12), references[12])  # nothing of the last session is left
        render_two_at_once(start_on("5"), references)
        os.killpg(pids[0], signal.SIGINT)  # as a Ctrl-C would, if workers were in the terminal's group
        time.sleep(0.1)
        assert all(alive(pid) for pid in pids)
    assert_gone(pids)
    pipeline.close()


def test_roles_that_cannot_be_built() -> None:
    with pytest.raises(BadInput, match="plain JSON"):
        start_pipeline(place(toy.roles_of(3), 2), toy.MODEL, {"a": torch.zeros(1)}, Deployment("2"))
    with pytest.raises(BadInput, match="cannot be imported"):
        start_pipeline(place(toy.roles_of(3), "inline"), "nowhere:build", {}, Deployment())
    with pytest.raises(
        Unavailable, match=r"^stage step0\+.*decode ended with exit status 1, its last line was \"KeyError: 'a'\": fix that"
    ):
        start_pipeline(place(toy.roles_of(3), 1), toy.MODEL, {}, Deployment("1", threads=1))
    assert not worker_pids()
