"""Time that a file does not hold audio for, as in discontinuous transmission, dropped packets and edit lists: it becomes silence."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.media.decoding.damage import bursts, drop_packets, shift_ms
from tests.media.recordings import encode, whole

from everface.core.config import SAMPLE_RATE
from everface.media.audio import probe_audio, read_track

SECONDS = 10
RATE = 48_000
DROPS: dict[str, Callable[[float], bool]] = {
    "one packet": lambda t: 4.0 < t <= 4.021,
    "every tenth": lambda t: round(t * 50) % 10 == 3 and 1 < t < 9,
    "transmission that pauses": lambda t: 2.5 < t < 3.7 or 5.0 < t < 7.0,
}


@pytest.mark.parametrize("suffix", ["ogg", "webm", "mka", "m4a"])
@pytest.mark.parametrize("drop", DROPS)
def test_dropped_packets_leave_silence_of_their_length(tmp_path: Path, suffix: str, drop: str, caplog: pytest.LogCaptureFixture) -> None:
    source = encode(tmp_path / f"a.{suffix.replace('mka', 'webm')}", bursts(SECONDS, RATE), RATE)
    path = drop_packets(source, tmp_path / f"gaps.{suffix}", DROPS[drop])
    true_S = whole(source)
    with caplog.at_level(logging.INFO, "everface"):
        got_S = whole(path)
    assert abs(len(got_S) - len(true_S)) < 0.03 * SAMPLE_RATE
    track_SC = np.concatenate(list(read_track(path)))
    assert abs(len(track_SC) / probe_audio(path).rate_hz - len(got_S) / SAMPLE_RATE) < 0.002
    # ogg says the time of a page only, here of a second: where in it a packet is missing is not known.
    late_s, most_ms = (7.2 if drop == "transmission that pauses" else 4.3), (16 if suffix != "ogg" else 110)
    assert suffix == "ogg" or abs(shift_ms(got_S, true_S, late_s)[0]) < most_ms
    assert abs(shift_ms(got_S, true_S, 8.4)[0]) < most_ms
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]  # nothing is damaged
    if drop == "transmission that pauses":
        assert suffix == "ogg" or not got_S[round(5.1 * SAMPLE_RATE) : round(6.9 * SAMPLE_RATE)].any()
        assert any("lacks audio" in r.getMessage() for r in caplog.records)


def test_an_edit_list_that_leaves_out_a_part(tmp_path: Path) -> None:
    """What a phone's editor writes for a cut: two seconds, and what is behind the third. That is no gap."""
    path = encode(tmp_path / "a.m4a", bursts(6, RATE), RATE)
    true_S = whole(path)
    data = path.read_bytes()
    begin, end = find_box(data, ("moov", "trak", "edts", "elst"))
    scale = 1000  # of the movie's header, as ffmpeg writes it
    edits = [(2 * scale, 1024), (3 * scale, 1024 + 3 * RATE)]
    body = struct.pack(">II", 0, len(edits)) + b"".join(struct.pack(">IiI", length, at, 1 << 16) for length, at in edits)
    path.write_bytes(replace_box(data, ("moov", "trak", "edts", "elst"), body, begin, end))
    got_S = whole(path)
    assert abs(len(got_S) / SAMPLE_RATE - 5) < 0.06
    assert abs(shift_ms(got_S, true_S, 0.2)[0]) < 16
    assert abs(shift_ms(got_S[2 * SAMPLE_RATE :], true_S[3 * SAMPLE_RATE :], 0.5)[0]) < 30


def find_box(data: bytes, names: tuple[str, ...]) -> tuple[int, int]:
    begin, end = 0, len(data)
    for name in names:
        at = begin
        while data[at + 4 : at + 8] != name.encode():
            at += int.from_bytes(data[at : at + 4], "big")
        begin, end = at + 8, at + int.from_bytes(data[at : at + 4], "big")
    return begin, end


def replace_box(data: bytes, names: tuple[str, ...], body: bytes, begin: int, end: int) -> bytes:
    """The index is behind the media, so no offset into it changes."""
    more = len(body) - (end - begin)
    out = bytearray(data[:begin] + body + data[end:])
    for depth in range(1, len(names) + 1):
        at = find_box(data, names[:depth])[0] - 8
        out[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + more).to_bytes(4, "big")
    return bytes(out)


def test_times_that_jitter_change_nothing(tmp_path: Path) -> None:
    """Matroska's times are whole milliseconds, and 44.1 kHz packets do not begin on them."""
    x_CS = bursts(SECONDS, 44_100)
    path = encode(tmp_path / "a.m4a", x_CS, 44_100)
    copied = drop_packets(path, tmp_path / "a.mka", lambda _: False)
    assert not (whole(copied)[SAMPLE_RATE:-SAMPLE_RATE] == 0).any()


def test_a_wrong_time_is_not_filled(tmp_path: Path) -> None:
    """One page of ogg that claims to be three days later."""
    path = encode(tmp_path / "a.ogg", bursts(SECONDS, RATE), RATE)
    assert abs(len(whole(path)) / SAMPLE_RATE - SECONDS) < 0.02
    data = bytearray(path.read_bytes())
    at = [i for i in range(len(data)) if data[i : i + 4] == b"OggS"][5]
    data[at + 6 : at + 14] = (3 * 86_400 * RATE).to_bytes(8, "little")
    data[at + 22 : at + 26] = bytes(4)
    length = 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
    data[at + 22 : at + 26] = ogg_crc(data[at : at + length]).to_bytes(4, "little")
    path.write_bytes(data)
    assert abs(len(whole(path)) / SAMPLE_RATE - SECONDS) < 1.2


def ogg_crc(page: bytes | bytearray) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        crc &= 0xFFFFFFFF
    return crc
