"""The session contract, against every face."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from tests.live.faces import FACES

from everface.core.errors import BadInput, Unavailable
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, Underrun, VideoFrame

SECONDS = 1.3


@pytest.fixture(params=FACES)
def read(request: pytest.FixtureRequest) -> Any:
    return FACES[request.param]


def tone(rate_hz: int, seconds: float = SECONDS) -> np.ndarray:
    return (8000 * np.sin(np.arange(int(rate_hz * seconds)) * 0.05)).astype(np.int16)


def ended(events: list[LiveEvent]) -> bool:
    return any(isinstance(e, LiveSegmentEnd) for e in events)


def video(events: list[LiveEvent]) -> list[VideoFrame]:
    return [e for e in events if isinstance(e, VideoFrame)]


def audio_of(events: list[LiveEvent]) -> list[AudioFrame]:
    return [e for e in events if isinstance(e, AudioFrame)]


FORMS = {
    "int16": lambda a: a,
    "float32": lambda a: (a / 32768).astype(np.float32),
    "stereo": lambda a: np.stack([a, a // 2], 1),
    "torch": lambda a: torch.from_numpy(a.copy()),
    "big-endian": lambda a: a.astype(">i2"),
}


CASES = [*((rate_hz, "int16") for rate_hz in (8_000, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000)), *((24_000, form) for form in FORMS)]


@pytest.mark.parametrize(("rate_hz", "form"), CASES)
def test_the_callers_own_audio_comes_back_with_the_video(live: Any, read: Any, rate_hz: int, form: str) -> None:
    audio = FORMS[form](tone(rate_hz))
    with live(idle=False, paced=False) as session:
        for piece in range(0, len(audio), 1000):
            assert session.push_audio(audio[piece : piece + 1000], rate_hz) == len(audio[piece : piece + 1000])
        session.end_segment()
        events = read(session, ended)
    back = np.concatenate([e.samples_SC for e in audio_of(events)])
    given = np.asarray(audio).reshape(len(audio), -1).astype(back.dtype, copy=False)
    assert np.array_equal(back[: len(given)], given) and not back[len(given) :].any()
    assert all(e.rate_hz == rate_hz for e in audio_of(events)) and len(back) - len(given) <= rate_hz // 25
    assert abs(len(video(events)) - SECONDS * 25) <= 1
    (end,) = [e for e in events if isinstance(e, LiveSegmentEnd)]
    assert not end.interrupted and end.shown_s == end.pushed_s == pytest.approx(SECONDS, abs=1e-3)


def test_bytes_are_int16(live: Any, read: Any) -> None:
    audio = np.stack([tone(48_000, 0.5), tone(48_000, 0.5)[::-1]], 1)
    with live(idle=False, paced=False) as session:
        assert session.push_audio(audio.tobytes(), 48_000, channels=2) == len(audio)
        session.end_segment()
        back = np.concatenate([e.samples_SC for e in audio_of(read(session, ended))])
    assert np.array_equal(back[: len(audio)], audio)


def test_each_video_frame_is_followed_by_its_audio_and_none_is_missing(live: Any, read: Any) -> None:
    with live(idle=False, paced=False) as session:
        session.push_audio(tone(16_000, 2.0))
        session.end_segment()
        events = [e for e in read(session, ended) if isinstance(e, VideoFrame | AudioFrame)]
    assert [type(e) for e in events] == [VideoFrame, AudioFrame] * (len(events) // 2)
    assert [e.pts for e in events[::2]] == [e.pts for e in events[1::2]] == [640 * i for i in range(50)]
    assert events[25].time_s == pytest.approx(12 * 0.04)


def test_the_face_is_alive_before_the_first_audio_and_between_segments(live: Any, read: Any) -> None:
    with live() as session:
        first = read(session, lambda events: len(video(events)) >= 15)
        assert all(e.idle for e in video(first)) and not any(e.samples_SC.any() for e in audio_of(first))
        session.push_audio(tone(16_000, 0.6))
        session.end_segment()
        events = read(session, ended)
        after = read(session, lambda events: len(video(events)) >= 15)
    assert any(not e.idle for e in video(events)) and all(e.idle for e in video(after))
    shown = [e.pts for e in video([*first, *events, *after]) if not e.held]
    assert shown == [640 * i for i in range(len(shown))]  # one stream, without a hole


def test_frames_come_at_the_pace_of_the_clock(live: Any, read: Any) -> None:
    with live() as session:
        read(session, lambda events: len(video(events)) >= 5)
        began_s = time.monotonic()
        read(session, lambda events: len(video(events)) >= 25)
        assert 0.7 < time.monotonic() - began_s < 5.0


def test_nothing_old_comes_after_an_interruption(live: Any, read: Any) -> None:
    with live(idle=False, paced=False) as session:
        session.push_audio(tone(16_000, 6.0))
        read(session, lambda events: len(video(events)) >= 20)
        session.interrupt()
        begin = session.position
        session.push_audio(tone(16_000, 0.5))
        session.end_segment()
        events = read(session, lambda events: sum(isinstance(e, LiveSegmentEnd) for e in events) == 2)
    ends = [e for e in events if isinstance(e, LiveSegmentEnd)]
    assert [e.segment for e in ends] == [1, 2] and [e.interrupted for e in ends] == [True, False]
    assert 0.7 < ends[0].shown_s < ends[0].pushed_s == 6.0
    assert all(e.pts >= begin for e in video(events)) and len(video(events)) == 13


def test_what_does_not_fit_is_not_taken(live: Any, read: Any) -> None:
    audio = tone(48_000, 30.0)
    with live(idle=False, paced=False) as session:
        taken = session.push_audio(audio, 48_000)
        assert 8 * 48_000 < taken < len(audio)
        results: list[int] = []
        pusher = threading.Thread(target=lambda: results.append(session.push_audio(audio[taken:], 48_000, timeout_s=20.0)))
        pusher.start()
        events = read(session, lambda events: len(video(events)) >= 25 * 25)  # room comes as it is read
        pusher.join()
        assert results == [len(audio) - taken]
    back = np.concatenate([e.samples_SC[:, 0] for e in audio_of(events)])
    assert len(back) > 24 * 48_000 and np.array_equal(back, audio[: len(back)])


def test_bad_audio_is_refused_in_a_sentence_and_nothing_is_lost(live: Any, read: Any) -> None:
    with live(idle=False, paced=False) as session:
        session.push_audio(tone(16_000, 0.5))
        for bad, rate in (
            (np.full(100, 3e4, np.float32), 16_000), (np.array([np.nan], np.float32), 16_000), (np.zeros((10, 3), np.int16), 16_000),
            (np.zeros(10, np.float64), 16_000), (b"odd", 16_000), ([1, 2], 16_000), (None, 16_000), (tone(8_000), 8_000), (np.zeros((9, 2), np.int16), 16_000), (np.zeros(9, np.float32), 16_000),
        ):  # fmt: skip
            with pytest.raises(BadInput):
                session.push_audio(bad, rate)  # type: ignore[arg-type]  what a caller may try
        session.end_segment()
        with pytest.raises(BadInput, match="8000 to 192000"):
            session.push_audio(tone(16_000), 4_000)
        assert len(video(read(session, ended))) == 13


def test_a_slow_reader_loses_frames_of_the_past_and_no_event(live: Any, read: Any) -> None:
    with live(outbox_s=0.2) as session:
        session.push_audio(tone(16_000, 1.0))
        session.end_segment()
        time.sleep(2.0)
        assert session.stats().dropped_frames > 10
        events = read(session, ended)
    assert len(video(events)) <= 6


def test_without_a_pace_nothing_is_lost(live: Any, read: Any) -> None:
    with live(idle=False, paced=False, outbox_s=0.2) as session:
        session.push_audio(tone(16_000, 9.0))
        session.end_segment()
        time.sleep(0.5)
        events = read(session, ended)
        assert session.stats().dropped_frames == 0
    assert [e.pts for e in video(events)] == [640 * i for i in range(225)]


def test_close_wakes_a_reader_and_ends_the_session(live: Any, read: Any) -> None:
    with live(idle=False) as session:
        threading.Timer(0.2, session.close).start()
        assert session.read(10.0) is None
        with pytest.raises(Unavailable, match="closed"):
            session.push_audio(tone(16_000))


def test_idle_motion_reaches_so_far_that_speech_can_be_collected_and_made(live: Any, read: Any) -> None:
    """At any moment, so that the video does not run out where speech begins: a block, and what the pipeline takes. Read just after a frame was
    given out, when the next is a frame's time away."""
    with live() as session:
        read(session, lambda events: len(video(events)) >= 15)
        queued_s: list[float] = []
        for _ in range(25):
            read(session, lambda events: len(video(events)) >= 1)
            queued_s.append(session.stats().queued_s)
    assert np.median(queued_s) > 0.48 + 0.01


def test_an_underrun_is_held_counted_and_told(live: Any) -> None:
    with live() as session:
        events: list[LiveEvent] = []
        end_s = time.monotonic() + 60
        pushed_s = 0.0
        while not any(isinstance(e, Underrun) for e in events) and time.monotonic() < end_s:
            if time.monotonic() - pushed_s > 0.3:  # a third of what is spoken in that time, too often for a pause: frames run out
                pushed_s = time.monotonic()
                session.push_audio(tone(16_000, 0.1))
            event = session.read(0.1)
            events += [event] if event else []
        stats = session.stats()
    assert stats.underruns >= 1 and stats.held_frames >= 1 and any(e.held for e in video(events))
