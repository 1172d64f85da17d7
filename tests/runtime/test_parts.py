"""A session that takes the frames of a block in parts gets the same frames, each once, and sooner."""

from __future__ import annotations

import torch
from tests.runtime import toy
from tests.runtime.cluster.toy_pipeline import start_on
from tests.runtime.test_session import Held

from everface.runtime.events import Recovered, Recovering, SegmentEnd, VideoBlock
from everface.runtime.messages import Block, Reply, reply_of

BLOCK, PART = 7680, 4 * 640
AUDIO_S = toy.speech(2.3)  # four blocks, and six frames of a fifth


class Parted(Held):
    """One message is run when there is nothing left to take, so a test sees each part arrive by itself."""

    def _receive(self) -> Reply | None:
        if not self.replies and self.messages:
            result = reply_of(self.stage.run(self.messages.popleft(), self.replies.append))
            self.replies += [result] if result else []
        return self.replies.pop(0) if self.replies else None

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.replies: list[Reply] = []


def whole() -> torch.Tensor:
    with Held(2) as pipeline, toy.open_session(pipeline) as s:
        return frames_of(toy.play(s, AUDIO_S))


def frames_of(blocks: list[VideoBlock]) -> torch.Tensor:
    return torch.cat([block.frames_THW3 for block in blocks])


def assert_in_order(blocks: list[VideoBlock], frames: int = 58) -> None:
    """Each frame has its place, none is there twice."""
    begins = [block.pts // 640 for block in blocks]
    assert begins == [sum(len(b.frames_THW3) for b in blocks[:n]) for n in range(len(blocks))]
    assert sum(len(b.frames_THW3) for b in blocks) == frames


def test_parts_are_the_block() -> None:
    with Parted(2) as pipeline, toy.open_session(pipeline, parts=True) as s:
        blocks = toy.play(s, AUDIO_S)
        events = s.events()
        assert [block.delivered_s is not None and block.frames for block in s.timeline.blocks] == [12, 12, 12, 12, 10]
    assert [(b.index, len(b.frames_THW3)) for b in blocks] == [(n, 4) for n in (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4)] + [(4, 2)]
    assert_in_order(blocks)
    assert torch.equal(frames_of(blocks), whole()) and events == [SegmentEnd(0, 0, len(AUDIO_S), len(AUDIO_S), False)]


def test_a_part_comes_before_the_next_is_made_and_counts_as_in_flight() -> None:
    with Parted(1) as pipeline, toy.open_session(pipeline, parts=True) as s:
        scheduler = toy.scheduler_of(pipeline)
        s.push_audio(AUDIO_S)
        scheduler.dispatch()
        sizes = []
        for _ in range(3):
            reply = pipeline.receive()
            assert isinstance(reply, Block)
            sizes.append((len(reply.x), reply.first, reply.more, pipeline.in_flight))
            scheduler._route(reply)
            assert s.stats().finished == 1 and not s.finished
        assert sizes == [(4, 0, True, 1), (4, 4, True, 1), (4, 8, False, 0)]
        assert [block.pts for block in s.poll()] == [0, PART, 2 * PART]


def test_who_does_not_ask_for_parts_gets_none() -> None:
    with Parted(2) as pipeline, toy.open_session(pipeline, parts=True) as other, toy.open_session(pipeline) as s:
        assert [len(b.frames_THW3) for b in toy.play(s, AUDIO_S)] == [12, 12, 12, 12, 10]
        assert len(toy.play(other, AUDIO_S)) == 15


def test_the_end_of_the_audio_within_the_first_part() -> None:
    with Parted(2) as pipeline, toy.open_session(pipeline, parts=True) as s:
        blocks = toy.play(s, toy.speech(0.48 + 0.08))
        assert [len(b.frames_THW3) for b in blocks] == [4, 4, 4, 2] and s.finished
        assert s.timeline.blocks[-1].delivered_s is not None and pipeline.in_flight == 0


def test_a_failure_between_two_parts_shows_no_frame_twice() -> None:
    with Parted(2) as pipeline:
        for fault, role in (("between", toy.LAST), ("throw", "step1"), ("nan", toy.LAST)):
            params = {"fault": fault, "fail_role": role, "fail_at": 2}
            with toy.open_session(pipeline, parts=True, params=params) as s:
                blocks = toy.play(s, AUDIO_S)
                kinds = [type(event) for event in s.events()]
            assert_in_order(blocks)
            assert kinds == [Recovering, Recovered, SegmentEnd]
            assert fault == "nan" or torch.equal(frames_of(blocks), whole())  # after values that are not finite the noise is another


def test_an_interruption_between_two_parts_drops_the_rest() -> None:
    with Parted(2) as pipeline, toy.open_session(pipeline, parts=True) as s:
        scheduler = toy.scheduler_of(pipeline)
        s.push_audio(AUDIO_S)
        scheduler.dispatch()
        for reply in (pipeline.receive(), pipeline.receive()):
            assert reply is not None
            scheduler._route(reply)
        assert next(s.frames()).pts == 0 and s.interrupt() == 1
        blocks = toy.play(s, toy.speech(0.5, seed=8))
        assert {b.turn for b in blocks} == {1} and [len(b.frames_THW3) for b in blocks] == [4, 4, 4, 1]
        assert pipeline.in_flight == 0


def test_parts_cross_threads_and_processes() -> None:
    with start_on("inline") as pipeline, toy.open_session(pipeline) as s:
        wanted = frames_of(toy.play(s, AUDIO_S))
    for placement in ("inline", "3"):
        with start_on(placement) as pipeline, toy.open_session(pipeline, parts=True) as s:
            blocks = toy.play(s, AUDIO_S)
        assert len(blocks) == 15 and torch.equal(frames_of(blocks), wanted)
        assert_in_order(blocks)
