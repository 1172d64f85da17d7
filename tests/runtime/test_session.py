"""A session over pipelines in this process: windows, tails, revisions, the sink rule, back-pressure."""

import time
from collections import deque

import pytest
import torch
from tests.runtime import toy

from everface.core.config import Deployment
from everface.core.errors import BadInput, Unavailable
from everface.runtime.events import Recovering, SegmentEnd, VideoBlock
from everface.runtime.messages import Block, Cancel, Message, Reply, reply_of
from everface.runtime.pipeline import Pipeline
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.stage import Stage
from everface.runtime.start import start_pipeline

BLOCK = 7680


class Held(Pipeline):
    """A pipeline in which a block is run when it is taken: the test decides what is in flight at an interruption."""

    def __init__(self, depth: int):
        super().__init__(depth)
        self.stage = Stage({role.name: toy.Toy.build_role(role.name, toy.SPEC) for role in toy.roles_of(3)})
        self.messages: deque[Message] = deque()
        self.seen: list[Block] = []

    def _send(self, message: Message) -> None:
        if isinstance(message, Cancel):
            self.stage.on_cancel(message)
            return
        if isinstance(message, Block):
            self.seen.append(Block(**vars(message)))
        self.messages.append(message)

    def _receive(self) -> Reply | None:
        return reply_of(self.stage.run(self.messages.popleft())) if self.messages else None

    def close(self) -> None:
        self.messages.clear()


def inline() -> Pipeline:
    return start_pipeline(place(toy.roles_of(3), "inline"), toy.MODEL, toy.SPEC, Deployment())


def test_windows_do_not_depend_on_the_pieces() -> None:
    back, ahead, pcm = 20_000, 1280, toy.speech(1.0)
    count = -(-len(pcm) // BLOCK)
    whole = torch.cat([torch.zeros(back), pcm, torch.zeros(BLOCK + ahead)])
    expected = [whole[i * BLOCK : i * BLOCK + back + BLOCK + ahead] for i in range(count)]
    videos = []
    for piece in (1, 160, 7679, 12_345, len(pcm)):
        windows = []

        def condition(index: int, window: torch.Tensor, windows: list[torch.Tensor] = windows) -> dict[str, torch.Tensor]:
            windows.append(window.clone())
            return toy.condition(index, window[back : back + BLOCK])

        with (
            inline() as pipeline,
            toy.open_session(pipeline, lookback_samples=back, lookahead_samples=ahead, condition=condition) as s,
        ):
            videos.append(torch.cat([b.frames_THW3 for b in toy.play(s, pcm, piece)]))
        assert len(windows) == count and all(torch.equal(a, b) for a, b in zip(windows, expected))
    assert videos[0].shape == (25, 8, 8, 3)
    assert all(torch.equal(videos[0], video) for video in videos)


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (1, 1), (160, 1), (640, 1), (641, 2), (7679, 12), (7680, 12), (7681, 13), (15_360, 24)]
)
@pytest.mark.parametrize("ahead", [0, 640])
def test_tail(samples: int, frames: int, ahead: int) -> None:
    with inline() as pipeline, toy.open_session(pipeline, lookback_samples=0, lookahead_samples=ahead, condition=cut) as s:
        blocks = toy.play(s, toy.speech(samples / 16_000))
        assert sum(len(b.frames_THW3) for b in blocks) == frames == s.timeline.frames
        assert [b.pts for b in blocks] == [i * BLOCK for i in range(len(blocks))] and s.accepted == samples
        assert all(len(b.frames_THW3) == 12 for b in blocks[:-1])


def cut(index: int, window: torch.Tensor) -> dict[str, torch.Tensor]:
    return toy.condition(index, window[:BLOCK])


def test_a_block_waits_for_its_look_ahead() -> None:
    with Held(1) as pipeline, toy.open_session(pipeline, lookback_samples=0, lookahead_samples=640, condition=cut) as s:
        toy.push(s, toy.speech(8319 / 16_000))
        assert toy.poll(s) == toy.poll(s) == []
        toy.push(s, torch.zeros(1))
        assert [b.index for b in toy.poll(s)] == [0]


def test_bad_sound_is_refused_and_changes_nothing() -> None:
    with inline() as pipeline, toy.open_session(pipeline) as s:
        for bad in (
            torch.tensor([0.0, float("nan")]), torch.tensor([float("inf")]), torch.zeros(2, 100),
            torch.zeros(100, dtype=torch.float64), torch.zeros(100, dtype=torch.int16), torch.zeros(160_001),
        ):  # fmt: skip
            with pytest.raises(BadInput):
                toy.push(s, bad)
        assert s.accepted == 0 and toy.push(s, torch.zeros(0)) and toy.push(s, torch.zeros(10).numpy()) and s.accepted == 10
        s.end_segment()
        with pytest.raises(BadInput, match="after end_segment"):
            toy.push(s, torch.zeros(10))
    with pytest.raises(Unavailable, match="closed"):
        toy.push(s, torch.zeros(10))


def test_back_pressure_keeps_memory_bounded() -> None:
    with Held(2) as pipeline, toy.open_session(pipeline, buffer_s=2.0, lookback_samples=3840) as s:
        accepted = 0
        while toy.push(s, toy.speech(0.1)):
            accepted += 1600
        assert s.accepted == accepted and 2 * BLOCK + 32_000 - 1600 < accepted <= 2 * BLOCK + 32_000
        assert s._buffer._audio_S.numel() <= 3840 + 32_000 and s._buffer._audio_S.untyped_storage().nbytes() == s._buffer._audio_S.nbytes
        assert pipeline.in_flight == 2 and pipeline.room() == 0
        with pytest.raises(RuntimeError, match="one more than the 2"):
            pipeline.send(Block(1, 0, 2, 0, 12, toy.noise(2)))
        assert len(toy.poll(s)) == 2 and toy.push(s, toy.speech(0.1))


def test_interruption() -> None:
    windows: list[torch.Tensor] = []

    def condition(index: int, window: torch.Tensor) -> dict[str, torch.Tensor]:
        windows.append(window.clone())
        return toy.condition(index, window[3840:])

    with Held(3) as pipeline, toy.open_session(pipeline, lookback_samples=3840, condition=condition) as s:
        assert s.interrupt() == 0  # nothing was pushed
        toy.push(s, toy.speech(3.0))
        assert [b.index for b in toy.poll(s)] == [0, 1, 2]
        assert s.interrupt() == s.interrupt() == 1  # blocks 3, 4, 5 are in flight
        assert pipeline.in_flight == 3 and toy.poll(s) == []
        new = toy.speech(1.2, seed=8)
        blocks = toy.play(s, new)
        assert [(b.index, b.turn, b.pts) for b in blocks] == [(i, 1, 48_000 + (i - 6) * BLOCK) for i in (6, 7, 8)]
        assert sum(len(b.frames_THW3) for b in blocks) == 30
        assert torch.equal(windows[6], torch.cat([torch.zeros(3840), new[:BLOCK]]))  # nothing of the old sound is cancels
        assert s.interrupt() == 2 and list_of_frames(s, toy.speech(0.04)) == [(9, 2, 48_000 + 19_200)]
        assert [b.index for b in s.timeline.blocks if b.delivered_s is None] == [3, 4, 5]


def list_of_frames(s, pcm: torch.Tensor) -> list[tuple[int, int, int]]:
    return [(b.index, b.turn, b.pts) for b in toy.play(s, pcm)]


def test_interruption_between_two_frames() -> None:
    with Held(3) as pipeline, toy.open_session(pipeline) as s:
        scheduler = toy.scheduler_of(pipeline)
        s.push_audio(toy.speech(1.44))
        s.end_segment()
        for _ in range(3):
            scheduler.run_once()
        blocks = s.frames()
        assert next(blocks).index == 0 and s.stats().finished == 2  # 1 and 2 are finished too, but not delivered
        s.interrupt()
        s.push_audio(toy.speech(0.1))
        s.end_segment()
        for _ in range(3):
            scheduler.run_once()
        assert [(b.index, b.turn) for b in blocks] == [(3, 1)]
        (scheduled,) = scheduler._sessions.values()
        assert isinstance(scheduled.model, toy.ToySession) and scheduled.model.interruptions == [1]  # it goes on from where block 0 ended


def test_the_sink_is_waited_for_and_rides_once() -> None:
    with Held(6) as pipeline, toy.open_session(pipeline) as s:
        toy.push(s, toy.speech(6.0))
        assert [b.index for b in pipeline.seen] == [0, 1, 2, 3] and pipeline.room() == 2
        toy.poll(s)
        toy.poll(s)
        assert [b.index for b in pipeline.seen if "bias" in b.condition] == [4] and len(pipeline.seen) > 6
    with Held(6) as pipeline, toy.open_session(pipeline, refresh_at=None) as s:
        toy.push(s, toy.speech(6.0))
        assert len(pipeline.seen) == 6 and not any("bias" in b.condition for b in pipeline.seen)


def test_an_interrupted_sink_rides_again() -> None:
    with Held(3) as pipeline, toy.open_session(pipeline) as s:
        toy.push(s, toy.speech(3.0))
        toy.poll(s)
        s.interrupt()  # block 4 is in flight with the sink
        toy.play(s, toy.speech(1.0))
        assert [b.index for b in pipeline.seen if "bias" in b.condition] == [4, 6]


def test_an_interrupted_first_block_leaves_the_first_sink() -> None:
    with Held(3) as pipeline, toy.open_session(pipeline) as s:
        toy.push(s, toy.speech(1.0))
        assert s.interrupt() == 1  # block 0 has not been run
        assert len(toy.play(s, toy.speech(3.0))) == 7
        assert not any("bias" in b.condition for b in pipeline.seen) and len(pipeline.seen) > 6


def test_a_bug_of_the_model_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.ToyDecoder, "run", toy.ToyRole.run)
    with Held(1) as pipeline, toy.open_session(pipeline) as s:
        toy.push(s, toy.speech(0.48))
        with pytest.raises(RuntimeError, match="without its latent"):
            toy.poll(s)
            toy.poll(s)


def test_disorder_is_told() -> None:
    with Held(3) as pipeline, toy.open_session(pipeline) as s:
        toy.push(s, toy.speech(1.44))
        pipeline.messages.popleft()
        with pytest.raises(RuntimeError, match="block 1 of session 1 came where 0 of 1 was due"):
            toy.poll(s)


def test_sessions_one_after_the_other_are_alike() -> None:
    with inline() as pipeline:
        videos = []
        for _ in range(2):
            with toy.open_session(pipeline) as s:
                toy.push(s, toy.speech(1.0, seed=3))
                s.interrupt()
                toy.push(s, toy.speech(1.0))
            with toy.open_session(pipeline) as s:
                videos.append(torch.cat([b.frames_THW3 for b in toy.play(s, toy.speech(1.0))]))
                assert s.timeline.first_frame_s and s.timeline.fps and s.timeline.first_frame_s > 0 and s.timeline.fps > 0
        assert torch.equal(*videos)


def test_every_epoch_of_sound_has_one_result() -> None:
    with Held(3) as pipeline, toy.open_session(pipeline) as s:
        toy.play(s, toy.speech(1.0))
        assert s.events() == [SegmentEnd(0, 0, 16_000, 16_000, interrupted=False)]
        s.interrupt()
        toy.push(s, toy.speech(3.0))
        shown = 16_000 + sum(640 * len(b.frames_THW3) for b in toy.poll(s))
        s.interrupt()
        s.interrupt()
        assert s.events() == [SegmentEnd(1, 16_000, 64_000, shown, interrupted=True)] and shown < 64_000
        toy.push(s, toy.speech(0.3))
    assert s.events() == [SegmentEnd(2, 64_000, 68_800, 64_000, interrupted=True)]


def test_a_viewer_that_takes_nothing_stalls_only_itself() -> None:
    with Held(2) as pipeline, toy.open_session(pipeline) as idle, toy.open_session(pipeline) as s:
        toy.push(idle, toy.speech(9.0))
        for _ in range(30):
            toy.scheduler_of(pipeline).run_once()
        assert idle.stats().finished + pipeline.in_flight <= 4 + 2
        assert len(toy.play(s, toy.speech(9.0))) == 19
        idle.end_segment()
        assert [b.index for b in toy.frames(idle)] == list(range(19))


def test_a_failed_block_is_made_again() -> None:
    for fault in ("throw", "memory"):
        with Held(3) as pipeline:
            with toy.open_session(pipeline) as s:
                truth = toy.play(s, toy.speech(4.0))
            with toy.open_session(pipeline, params={"fault": fault, "fail_role": "step1", "fail_at": 5}) as s:
                played = toy.play(s, toy.speech(4.0))
                kinds = [type(e).__name__ for e in s.events()]
            assert [(b.index, b.pts) for b in played] == [(b.index, b.pts) for b in truth]
            assert all(torch.equal(a.frames_THW3, b.frames_THW3) for a, b in zip(played[:5], truth[:5]))
            assert kinds == ["Recovering", "Recovered", "SegmentEnd"]


def test_an_interruption_while_lost_blocks_are_run_again() -> None:
    """The stages have all the blocks before the next turn in order, whenever the interruption comes: none, some or all of them run again."""
    for steps in range(6):
        with Held(3) as pipeline, toy.open_session(pipeline, params={"fault": "throw", "fail_role": "step1", "fail_at": 5}) as s:
            scheduler = toy.scheduler_of(pipeline)
            toy.push(s, toy.speech(9.0))
            blocks, openings = list[VideoBlock](), list[int]()
            while not s.events():
                scheduler.dispatch()
                if (reply := pipeline.receive()) is not None:
                    scheduler._route(reply)
                blocks += s.poll()
            assert [b.index for b in blocks] == list(range(5))
            for _ in range(steps):
                scheduler.dispatch()
                if (reply := pipeline.receive()) is not None:
                    scheduler._route(reply)
            s.interrupt()
            pipeline.seen.clear()
            blocks = toy.play(s, toy.speech(1.4))
            run_again = [b.index for b in pipeline.seen if b.index < blocks[0].index]
            openings = [s.format.history, steps]
            assert run_again == [1, 2, 3, 4][-s.format.history :] or (steps and not run_again and blocks[0].index > 5), openings
            assert len(blocks) == 3 and {b.turn for b in blocks} == {1}


def test_many_sessions_open_fail_and_close_at_once() -> None:
    """More than the replies' channel has room for: no stage may wait for room while the scheduler waits for that stage."""
    with inline() as pipeline:
        scheduler = Scheduler(pipeline, 60)
        sessions = [toy.open_at(scheduler, params={"fault": "throw", "fail_role": "step1", "fail_at": 1}) for _ in range(50)]
        for session in sessions:
            session.wait_open(20.0).push_audio(toy.speech(1.4))
            session.end_segment()
        assert [len(list(session.frames())) for session in sessions] == [3] * 50
        for session in sessions[:20]:
            session.close()
        scheduler.detach()
        assert {session.state for session in sessions} == {"closed"} and not pipeline.in_flight
        again = toy.open_at(Scheduler(pipeline, 60)).wait_open(20.0)
        assert pipeline.control_room() > 0
        again.close()


def test_room_is_waited_for_whatever_else_happens() -> None:
    with Held(2) as pipeline, toy.open_session(pipeline, buffer_s=1.0) as s:
        assert s.push_audio(toy.speech(1.0)) and not s.push_audio(toy.speech(0.5))
        s.report(Recovering("a test"))
        began_s = time.monotonic()
        assert not s.wait_room(8000, 0.2) and time.monotonic() - began_s >= 0.2  # the event is nobody's to take here
        assert s.wait(0.0)
        toy.step(toy.scheduler_of(pipeline))
        assert s.wait_room(7000, 0.2) and not s.wait_room(16_000, 0.0)
        s.close()
        assert not s.wait_room(16_000, 60.0)


def test_a_block_that_always_fails_ends_its_session_only() -> None:
    with Held(3) as pipeline, toy.open_session(pipeline) as other:
        for fault, words in (("throw", "ArithmeticError: toy trouble at block 5"), ("nan", "role 1 returned values")):
            with toy.open_session(pipeline, params={"fault": fault, "fail_role": "step1", "fail_at": 5, "once": False}) as s:
                with pytest.raises(Unavailable, match=words):
                    toy.play(s, toy.speech(9.0))
                with pytest.raises(Unavailable, match="twice"):
                    toy.push(s, toy.speech(0.1))
        assert len(toy.play(other, toy.speech(4.0))) == 9


def test_values_that_are_not_finite_never_come_out() -> None:
    with Held(3) as pipeline, toy.open_session(pipeline, params={"fault": "nan", "fail_role": "step0", "fail_at": 6}) as s:
        played = toy.play(s, toy.speech(5.0))
        assert [b.index for b in played] == list(range(11))
        fresh = [b for b in pipeline.seen if b.index == 6]
        assert len(fresh) == 2 and not torch.equal(fresh[0].x, fresh[1].x)  # other noise


def test_a_refused_opening_harms_nobody() -> None:
    with Held(3) as pipeline, toy.open_session(pipeline) as other:
        with pytest.raises(Unavailable, match="could not be opened on step2: Unavailable: toy memory is short"):
            toy.open_session(pipeline, params={"refuse_role": "step2"})
        assert len(toy.play(other, toy.speech(2.0))) == 5
        for _ in range(3):
            toy.open_session(pipeline)
        with pytest.raises(Unavailable, match="serves 4 sessions already"):
            toy.open_session(pipeline)


def test_a_new_picture_rides_with_the_next_block() -> None:
    with Held(2) as pipeline, toy.open_session(pipeline) as s:
        toy.push(s, toy.speech(4.0))
        blocks = toy.poll(s)
        s.change(bias=torch.full(toy.LATENT, 0.5))
        s.end_segment()
        blocks += toy.frames(s)
        carried = [b.index for b in pipeline.seen if "bias" in b.condition]
        assert len(carried) == 1 and carried[0] >= len(blocks[:1]) and [b.index for b in blocks] == list(range(9))


def test_a_second_scheduler_finds_nothing_of_the_first() -> None:
    with inline() as pipeline:
        first = Scheduler(pipeline)
        left_open = toy.open_at(first).wait_open()
        left_open.push_audio(toy.speech(3.0))
        first.detach()
        assert left_open.state == "closed"
        second = Scheduler(pipeline)
        session = toy.open_at(second).wait_open()
        session.push_audio(toy.speech(1.0))
        session.end_segment()
        assert session.id > left_open.id and len(list(session.frames())) == 3
        second.detach()
