"""What the second model asked of the runtime: work behind a block, the first blocks again after a loss, a look-ahead in live sessions."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
import torch
from tests.runtime.two_roles import ROLES, Generate, TwoRolesSession

from everface.core.config import Deployment
from everface.live.events import LiveSegmentEnd, VideoFrame
from everface.live.session import LiveSession
from everface.runtime.in_flight import InFlight, PreparedBlock
from everface.runtime.messages import Block, Failure, OpenSession
from everface.runtime.model import BlockFormat, SettlingRole, Window
from everface.runtime.planning.forecast import Times, simulate
from everface.runtime.planning.placement import place
from everface.runtime.registry import path_of
from everface.runtime.scheduler import Scheduler
from everface.runtime.stage import Stage
from everface.runtime.start import start_pipeline


class Settling(Generate):
    """Notes what it was asked to settle."""

    def __init__(self) -> None:
        super().__init__({})
        self.settled: list[int] = []
        self.fails = False

    def settle(self, session: int) -> None:
        if self.fails:
            raise ValueError("no")
        self.settled.append(session)


def block(index: int) -> Block:
    return Block(1, 0, index, 0, 12, torch.zeros(12), {"level": torch.zeros(())})


def test_a_stage_settles_once_behind_each_block() -> None:
    role = Settling()
    assert isinstance(role, SettlingRole) and not isinstance(Generate({}), SettlingRole)
    stage = Stage({"generate": role})
    stage.run(OpenSession(1, {}))
    assert not stage.unsettled
    for index in range(2):
        assert isinstance(stage.run(block(index)), Block) and stage.unsettled and len(role.settled) == index
        stage.settle()
        stage.settle()
        assert len(role.settled) == index + 1
    role.fails = True
    assert isinstance(stage.run(block(2)), Block)
    stage.settle()
    failed = stage.run(block(3))
    assert isinstance(failed, Failure) and "not open" in failed.reason


def test_the_first_blocks_are_run_again_too() -> None:
    flight, session = InFlight(BlockFormat(history=1, first_history=2)), TwoRolesSession()
    window = Window(torch.zeros(1), 0, 12, False, 0)
    for index in range(6):
        flight.waiting.append(PreparedBlock(index, window))
        sent = flight.send(1, session)
        flight.delivered(flight.match(sent).block)
    flight.resend()
    assert [b.index for b in flight.waiting] == [0, 1, 5]


def test_only_the_first_turn_begins_with_a_block_of_another_length() -> None:
    flight = InFlight(TwoRolesSession.format)
    assert flight.next_index == 0
    flight.cancel()
    assert flight.next_index == 1
    plain = InFlight(BlockFormat())
    plain.cancel()
    assert plain.next_index == 0


class LookingAhead(TwoRolesSession):
    format = BlockFormat(frames=12, first_frames=9, samples_per_frame=1000, lookback_samples=500, lookahead_samples=4000)


@pytest.mark.parametrize("seconds", [0.5, 9 / 16, 1.0, 2.0])
def test_a_live_segment_ends_though_the_model_looks_ahead(seconds: float) -> None:
    pipeline = start_pipeline(place(ROLES, "inline"), path_of("two-roles"), {}, Deployment())
    with closing(Scheduler(pipeline)) as scheduler, LiveSession(scheduler.open_session(LookingAhead()).wait_open(), idle=False, paced=False) as live:
        for turn in range(3):  # the second segment begins behind the silence of the first, the third a turn
            if turn == 2:
                live.interrupt()
            live.push_audio(torch.ones(int(seconds * 16_000)).numpy(), 16_000)
            live.end_segment()
            frames, end, until_s = 0, None, time.monotonic() + 60
            while end is None and time.monotonic() < until_s:
                event = live.read(0.5)
                frames += isinstance(event, VideoFrame)
                end = event if isinstance(event, LiveSegmentEnd) else None
            assert end is not None and end.shown_s == pytest.approx(seconds)
            assert frames == -(-int(seconds * 16_000) // 1000)


def test_the_forecast_counts_work_behind_a_block_for_the_rate_not_for_the_latency() -> None:
    times = {"generate": 400.0, "paint": 200.0}
    form = TwoRolesSession.format
    two = place(ROLES, 2)
    plain, rest = (simulate(two, Times(times, 0.0, format=form, rest_ms=r)) for r in ({}, {"generate": 100.0}))
    whole = simulate(two, Times({**times, "generate": 500.0}, 0.0, format=form))
    assert rest.first_frame_ms == plain.first_frame_ms < whole.first_frame_ms
    assert rest.fps == pytest.approx(whole.fps) and rest.fps < plain.fps
