"""The session contract against its model: a few histories in every run, many in the long one."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.live.contract_machine import Contract
from tests.live.faces import live_in_process, read_sync

from everface.live.events import AudioFrame, LiveSegmentEnd, VideoFrame

COMMON = {"phases": (Phase.generate,), "deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "print_blob": True}


def test_some_histories() -> None:
    run_state_machine_as_test(Contract, settings=settings(max_examples=12, stateful_step_count=20, derandomize=True, **COMMON))


def test_a_segment_that_follows_at_once_is_whole() -> None:
    """It begins before the silence is there that would complete the block of the one before."""
    audio_S = np.arange(1, 9601, dtype=np.int16)
    with live_in_process(idle=False, paced=False) as session:
        with session._lock:  # the session's own thread must not come between
            session.push_audio(audio_S[:4500])
            session.end_segment()
            session.push_audio(audio_S[4500:6100])
        time.sleep(0.1)  # for the silence that must not come
        session.push_audio(audio_S[6100:])
        session.end_segment()
        events = read_sync(session, lambda events: sum(isinstance(e, LiveSegmentEnd) for e in events) == 2)
    video, audio = [e for e in events if isinstance(e, VideoFrame)], [e for e in events if isinstance(e, AudioFrame)]
    assert [e.pts for e in video] == [e.pts for e in audio] == [640 * i for i in range(8 + 8)]  # each segment begins with a frame
    back = np.concatenate([e.samples_SC[:, 0] for e in audio])
    assert len(back) == 640 * 16 and np.array_equal(back[back != 0], audio_S)


@pytest.mark.long
def test_many_histories() -> None:
    run_state_machine_as_test(Contract, settings=settings(max_examples=150, stateful_step_count=50, **COMMON))
