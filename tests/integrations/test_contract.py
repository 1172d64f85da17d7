"""The session contract of tests/live, through each adapter."""

from __future__ import annotations

import inspect

import pytest
from tests.integrations import faces
from tests.live import test_contract as contract

BOTH = {
    "test_what_does_not_fit_is_not_taken": "adapters wait for room",
    "test_bad_audio_is_refused_in_a_sentence_and_nothing_is_lost": "both frameworks know int16 alone",
}
NOT_KEPT = {
    "livekit": BOTH,
    "pipecat": {
        **BOTH,
        "test_a_slow_reader_loses_frames_of_the_past_and_no_event": "a pipeline always reads",
        "test_without_a_pace_nothing_is_lost": "a pipeline has no pace of its own",
        "test_close_wakes_a_reader_and_ends_the_session": "Pipecat ends a pipeline: see test_pipecat.py",
    },
}


def cases(name: str) -> list[str]:
    """Tests of the contract that take a face and nothing else."""
    tests = (f for f in dir(contract) if f.startswith("test_") and f not in NOT_KEPT[name])
    return [f for f in tests if list(inspect.signature(getattr(contract, f)).parameters) == ["live", "read"]]


@pytest.fixture(params=NOT_KEPT)
def face(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("livekit.agents" if request.param == "livekit" else "pipecat")
    return request.param


@pytest.mark.parametrize("case", cases("livekit"))
def test_the_contract_is_kept(face: str, case: str) -> None:
    if case not in cases(face):
        pytest.skip(NOT_KEPT[face][case])
    getattr(contract, case)(getattr(faces, face), faces.read)


@pytest.mark.parametrize("rate_hz", [8_000, 24_000, 44_100])
def test_the_callers_own_audio_comes_back_with_the_video(face: str, rate_hz: int) -> None:
    contract.test_the_callers_own_audio_comes_back_with_the_video(getattr(faces, face), faces.read, rate_hz, "int16")


def test_no_exception_is_stale() -> None:
    assert {name for kept in NOT_KEPT.values() for name in kept} <= set(dir(contract))
    assert len(cases("livekit")) >= 8 and len(cases("pipecat")) >= 5

