"""The session contract over the WebSocket and over plain HTTP. Cases that are about Python's types or the caller's own queue are not the network's."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from tests.live.faces import read_async, read_sync
from tests.live.test_contract import (  # noqa: F401 pytest collects them here too
    test_an_underrun_is_held_counted_and_told,
    test_bytes_are_int16,
    test_close_wakes_a_reader_and_ends_the_session,
    test_each_video_frame_is_followed_by_its_audio_and_none_is_missing,
    test_frames_come_at_the_pace_of_the_clock,
    test_nothing_old_comes_after_an_interruption,
    test_the_callers_own_audio_comes_back_with_the_video,
    test_the_face_is_alive_before_the_first_audio_and_between_segments,
    test_without_a_pace_nothing_is_lost,
)
from tests.serve.faces import HttpSession, RemoteSession, WebSocketSession, remote_live

FACES = {
    "WebSocket": (WebSocketSession, read_sync), "WebSocket, async": (WebSocketSession, read_async), "HTTP": (HttpSession, read_sync),
}  # fmt: skip


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Any:
    return FACES[request.param]


@pytest.fixture
def read(face: tuple[type[RemoteSession], Any]) -> Any:
    return face[1]


@pytest.fixture
def live(face: tuple[type[RemoteSession], Any]) -> Any:
    return partial(remote_live, face[0])
