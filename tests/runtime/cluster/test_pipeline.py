"""Pipelines of real processes over gloo: equal bits on every placement, bounded, and never an orphan."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import toy

from everface.core.config import Deployment
from everface.core.errors import BadInput, Unavailable
from everface.runtime.pipeline import Pipeline, ProcessPipeline
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.stage import Cancelled
from everface.runtime.start import start_pipeline

STEPS = 4
SPEECH = {12: toy.speech(12 * 0.48 - 0.1), 40: toy.speech(40 * 0.48 - 0.3)}  # seconds, for that many blocks


def start_on(placement: str, steps: int = STEPS) -> Pipeline:
    return start_pipeline(place(toy.roles_of(steps), placement), toy.MODEL, toy.SPEC, Deployment(placement, threads=1, timeout_s=60.0))


def render(pipeline: Pipeline, blocks: int, **options) -> torch.Tensor:
    with toy.open_session(pipeline, **options) as s:
        played = toy.play(s, SPEECH[blocks])
    assert [b.index for b in played] == list(range(blocks))
    return torch.cat([b.frames_THW3 for b in played])


@pytest.fixture(scope="module")
def references() -> dict[int, torch.Tensor]:
    with start_on("inline") as pipeline:
        videos = {blocks: render(pipeline, blocks) for blocks in SPEECH}
        plain = render(pipeline, 12, refresh_at=None)
    assert torch.equal(videos[12][:48], plain[:48]) and not torch.equal(
        videos[12][48:], plain[48:]
    )  # the sink matters from block 4
    return videos


def render_both(pipeline: Pipeline, references: dict[int, torch.Tensor]) -> list[int]:
    """Both lengths equal the reference on this placement; its process ids."""
    assert isinstance(pipeline, ProcessPipeline)
    for blocks, reference in references.items():
        video = render(pipeline, blocks)
        assert torch.equal(video, reference), f"{pipeline.depth} processes differ over {blocks} blocks"
    return pipeline.processes


def assert_gone(pids: list[int], within_s: float = 0.0) -> None:
    end_s = time.monotonic() + within_s
    while any(alive(pid) for pid in pids) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE or psutil.Process(pid).ppid() == os.getpid()
    except psutil.NoSuchProcess:
        return False


def render_two_at_once(pipeline: Pipeline, references: dict[int, torch.Tensor]) -> None:
    """Two viewers whose blocks interleave: each sees what it would see alone."""
    scheduler = Scheduler(pipeline)
    try:
        sessions = [toy.open_at(scheduler).wait_open() for _ in SPEECH]
        videos: dict[int, torch.Tensor] = {}

        def play(s, blocks: int) -> None:
            videos[blocks] = torch.cat([b.frames_THW3 for b in toy.play(s, SPEECH[blocks])])

        threads = [threading.Thread(target=play, args=(s, blocks)) for s, blocks in zip(sessions, SPEECH)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(videos[blocks], references[blocks]) for blocks in SPEECH)
        late = sessions[0].timeline.blocks[-1].delivered_s
        assert late and sessions[1].timeline.blocks[0].sent_s < late  # they did overlap
    finally:
        scheduler.close()


def test_two_sessions_inline(references: dict[int, torch.Tensor]) -> None:
    render_two_at_once(start_on("inline"), references)


def test_one_process_and_two_sessions(references: dict[int, torch.Tensor]) -> None:
    pipeline = start_on("1")
    pids = render_both(pipeline, references)
    render_two_at_once(pipeline, references)
    assert_gone(pids)


def test_two_processes(references: dict[int, torch.Tensor]) -> None:
    with start_on("2") as pipeline:
        pids = render_both(pipeline, references)
    assert_gone(pids)


def test_three_processes(references: dict[int, torch.Tensor]) -> None:
    with start_on("3") as pipeline:
        pids = render_both(pipeline, references)
    assert_gone(pids)


def test_four_processes_and_too_many_losses(references: dict[int, torch.Tensor]) -> None:
    with start_on("4") as pipeline:
        assert isinstance(pipeline, ProcessPipeline)
        pids = render_both(pipeline, references)
        with toy.open_session(pipeline) as s:
            pipeline._supervisor.losses.extend([time.monotonic()] * 3)
            os.kill(pids[1], signal.SIGKILL)
            with pytest.raises(Unavailable, match=r"^4 stages were lost within 60 s: mend the cause"):
                toy.play(s, toy.speech(9.0))
            with pytest.raises(Unavailable, match="mend the cause"):
                toy.open_session(pipeline)
    assert_gone(pids)


def test_five_processes_interruption_and_back_pressure(references: dict[int, torch.Tensor]) -> None:
    with start_on("5") as pipeline:
        pids = render_both(pipeline, references)
        assert pipeline.depth == 6
        with toy.open_session(pipeline, params={"slow_role": "decode", "slow_s": 0.2}, refresh_at=None) as s:
            answers, take = [], pipeline.take
            pipeline.take = lambda timeout_s: answers.append(take(timeout_s)) or answers[-1]  # type: ignore[method-assign]
            s.push_audio(toy.speech(10.0))
            held = []
            for _ in range(20):
                held.append(pipeline.in_flight)
                time.sleep(0.02)
                s.poll()
            assert max(held) == 6  # full, and no further
            del answers[:]
            assert s.interrupt() == 1
            pusher = threading.Thread(target=lambda: (s.push_audio(toy.speech(0.5)), s.end_segment()))
            pusher.start()
            blocks = list(s.frames())
            pusher.join()
            assert [(b.revision, b.pts) for b in blocks] == [(1, 160_000), (1, 160_000 + 7680)]
            old = [a for a in answers if a is not None and a.revision == 0]
            assert len(old) == 6 and sum(isinstance(a, Cancelled) for a in old) >= 3  # what waited was not decoded
        assert pipeline.in_flight == 0
        assert torch.equal(render(pipeline, 12), references[12])  # nothing of the last session is left
        render_two_at_once(start_on("5"), references)
        os.killpg(pids[0], signal.SIGINT)  # as a Ctrl-C would, if children were in the terminal's group
        time.sleep(0.1)
        assert all(alive(pid) for pid in pids)
    assert_gone(pids)
    pipeline.close()


ORPHAN = """
import sys, time
sys.path[:0] = {path!r}
import test_pipeline, toy
pipeline = test_pipeline.start_on("2", steps=3)
s = toy.open_session(pipeline, params={{"slow_role": "step0", "slow_s": 0.2}})
s.push_audio(toy.speech(9.0))
print(*pipeline.processes, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["time.sleep(300)", "raise KeyboardInterrupt"])
def test_parent_gone_leaves_no_orphan(end: str) -> None:
    code = ORPHAN.format(path=[str(Path(__file__).parent), *sys.path], end=end)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        stop = threading.Timer(100.0, parent.kill)  # whatever goes wrong
        stop.start()
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if end.startswith("time"):
            assert all(alive(pid) for pid in pids)
            parent.send_signal(signal.SIGKILL)
        parent.wait()
        stop.cancel()
    assert_gone(pids, within_s=20.0)


def test_roles_that_cannot_be_built() -> None:
    with pytest.raises(BadInput, match="plain JSON"):
        start_pipeline(place(toy.roles_of(3), 2), toy.MODEL, {"a": torch.zeros(1)}, Deployment("2"))
    with pytest.raises(BadInput, match="cannot be imported"):
        start_pipeline(place(toy.roles_of(3), "inline"), "nowhere:build", {}, Deployment())
    with pytest.raises(
        Unavailable, match=r"^stage step0\+.*decode ended with exit status 1, its last stream being \"KeyError: 'a'\": mend that"
    ):
        start_pipeline(place(toy.roles_of(3), 1), toy.MODEL, {}, Deployment("1", threads=1))
    assert not psutil.Process().children()
