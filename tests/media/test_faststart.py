"""A closed video is an ordinary MP4: the index first, with durations and tables, and the same packets at the same times."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from tests.media import boxes
from tests.media.films import H, W, beep, pattern

from everface.core.errors import BadInput
from everface.media import faststart
from everface.media.faststart import rewrite
from everface.media.fragments import read_fragments
from everface.media.video import probe_video, read_frames
from everface.media.video_writer import VideoWriter

COUNT = 262
HOURS = 10


def write(path: Path, count: int = COUNT, rate: int | None = 16_000) -> None:
    """A video with a flash and a beep, and none of its audio missing."""
    frames_THW3, audio_S = pattern(count), beep(count, rate or 16_000)
    with VideoWriter(path, H, W, rate) as writer:
        for i in range(0, count, 12):
            if rate:
                writer.write_audio(audio_S[i * rate // 25 : (i + 12) * rate // 25])
            writer.write(frames_THW3[i : i + 12])


@pytest.fixture(scope="module")
def fragmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as it is before it is closed."""
    path = tmp_path_factory.mktemp("fragmented") / "a.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everface.media.output.rewrite", lambda *_: Path("/none").stat())  # as if it could not be done
        write(path)
    assert "moof" in boxes.names(path)
    return path


def packets(path: Path) -> list[tuple]:
    with av.open(str(path)) as container:
        found = [(p.stream.type, p.pts, p.dts, p.duration, p.is_keyframe, bytes(p)) for p in container.demux() if p.size]
    return sorted(found, key=lambda packet: packet[:3])


def remux(source: Path, target: Path) -> None:
    """As libav does it."""
    with av.open(str(source)) as before, av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as after:
        streams = {stream.index: after.add_stream_from_template(stream) for stream in before.streams}
        for packet in before.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                after.mux(packet)


def test_the_index_comes_first_and_knows_the_length(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path)
    assert boxes.names(path) == ["ftyp", "moov", "mdat"]
    movie, video, audio = boxes.tables(path)
    milliseconds = COUNT * 40
    assert boxes.uint32s(movie["mvhd"])[2:4] == [1000, milliseconds] and "mvex" not in movie
    for track in (video, audio):
        assert boxes.uint32s(track["tkhd"])[4] == milliseconds
        assert boxes.uint32s(track["edts/elst"])[:2] == [1, milliseconds]
    scale, duration = boxes.uint32s(video["mdia/mdhd"])[2:4]
    assert duration / scale == COUNT / 25
    assert boxes.uint32s(video["mdia/minf/stbl/stss"]) == [11, *range(1, COUNT, 25)]
    with av.open(str(path)) as container:
        assert container.duration == COUNT * 40_000
        assert container.streams.video[0].frames == COUNT
        for stream in container.streams:
            assert stream.duration and stream.time_base and abs(float(stream.duration * stream.time_base) - COUNT / 25) < 0.03


@pytest.mark.parametrize("rate", [16_000, 44_100, None])
def test_libav_makes_the_same_tables(tmp_path: Path, rate: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "fragmented.mp4"

    def keep(source: Path, target: Path, _: object) -> None:
        kept.write_bytes(source.read_bytes())
        rewrite(source, target)

    monkeypatch.setattr("everface.media.output.rewrite", keep)
    write(tmp_path / "ours.mp4", rate=rate)
    remux(kept, tmp_path / "theirs.mp4")
    assert packets(tmp_path / "ours.mp4") == packets(tmp_path / "theirs.mp4") and len(packets(kept)) > COUNT - 1
    ours, theirs = boxes.tables(tmp_path / "ours.mp4"), boxes.tables(tmp_path / "theirs.mp4")
    assert [sorted(track) for track in ours] == [sorted(track) for track in theirs]
    differ = {"stsc", "stco", "stsd"}  # chunks of a second; no bit rates in the description
    for mine, other in zip(ours, theirs):
        assert {name.split("/")[-1] for name in mine if mine[name] != other[name]} <= differ


def test_players_can_seek(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path)
    truth = list(read_frames(path))
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert video.time_base is not None
        for wanted in (COUNT // 2, COUNT - 3, 0):
            container.seek(round(wanted / 25 / video.time_base), stream=video)
            frame = next(f for f in container.decode(video) if round(f.time * 25) == wanted)
            assert np.array_equal(frame.to_ndarray(format="rgb24"), truth[wanted])
        container.seek(round(200 / 25 / video.time_base), stream=video)
        assert round(next(container.decode(video)).time * 25) == 200  # at a keyframe: nothing before it had to be read


def test_a_torn_fragment_is_left_out(fragmented: Path, tmp_path: Path) -> None:
    data = fragmented.read_bytes()
    (tmp_path / "torn.mp4").write_bytes(data[: len(data) * 3 // 4])
    rewrite(tmp_path / "torn.mp4", tmp_path / "a.mp4")
    info = probe_video(tmp_path / "a.mp4")
    assert info.frames == len(list(read_frames(tmp_path / "a.mp4"))) >= 25 and info.frames % 25 == 0
    assert boxes.names(tmp_path / "a.mp4") == ["ftyp", "moov", "mdat"]


def test_damage_is_refused_and_nothing_is_lost(fragmented: Path, tmp_path: Path) -> None:
    data, chance, refused = fragmented.read_bytes(), random.Random(0), 0
    for _ in range(300):
        torn = bytearray(data)
        for _ in range(8):
            torn[chance.randrange(2500)] = chance.randrange(256)
        (tmp_path / "torn.mp4").write_bytes(torn)
        try:
            rewrite(tmp_path / "torn.mp4", tmp_path / "a.mp4")
        except BadInput as error:
            assert "\n" not in str(error)
            refused += 1
        assert (tmp_path / "torn.mp4").read_bytes() == torn
    assert refused > 100
    for name in ("empty", "text"):
        (tmp_path / name).write_text("words " * 10 if name == "text" else "")
        with pytest.raises(BadInput):
            rewrite(tmp_path / name, tmp_path / "a.mp4")


def repeat_fragment(source: Path, target: Path, count: int) -> None:
    """The second fragment, a second of silence and of 25 frames, `count` times with the right times."""
    data, parts, at = source.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append(data[at : at + length])
        at += length
    first = [i for i, part in enumerate(parts) if part[4:8] == b"moof"][1]
    moof, mdat = bytearray(parts[first]), parts[first + 1]
    places = [i + 8 for i in range(len(moof)) if moof[i : i + 4] == b"tfdt"]
    starts = [struct.unpack_from(">Q", moof, place)[0] for place in places]
    with open(target, "wb") as file:
        file.writelines(parts[:first])
        for i in range(count):
            for place, start, length in zip(places, starts, (25 * 512, 47 * 1024)):
                struct.pack_into(">Q", moof, place, start + i * length)
            file.write(moof)
            file.write(mdat)


MEASURE = """
import resource, sys
from pathlib import Path
from everface.media.faststart import rewrite
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rewrite(Path(sys.argv[1]), Path(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_ten_hours_take_little_memory(fragmented: Path, tmp_path: Path) -> None:
    seconds = HOURS * 3600
    repeat_fragment(fragmented, tmp_path / "long.mp4", seconds)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "long.mp4"), str(tmp_path / "a.mp4")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40  # MiB, for 2.6 million samples
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.duration is not None and container.duration / 1e6 == pytest.approx(seconds + 1, rel=0.01)
        assert container.streams.video[0].frames == 25 * (seconds + 1)
        container.seek(seconds * 1_000_000 // 2)
        assert next(container.decode(video=0)).time == seconds / 2


def test_beyond_4_gib_offsets_have_64_bits(fragmented: Path, tmp_path: Path) -> None:
    with open(fragmented, "rb") as file:
        read = read_fragments(file)
    read.pieces.extend((0, 5 << 30))  # samples that are far behind
    read.tracks[1].chunks[-1] += 5 << 30
    header = b"".join(faststart._header(read))
    (tmp_path / "a.mp4").write_bytes(header[:-16])
    assert struct.unpack(">I4sQ", header[-16:]) == (1, b"mdat", sum(read.pieces[1::2]) + 16)
    tracks = boxes.tables(tmp_path / "a.mp4")[1:]
    for number, track in enumerate(tracks, 1):
        (count,) = struct.unpack_from(">I", track["mdia/minf/stbl/co64"], 4)
        offsets = struct.unpack_from(f">{count}Q", track["mdia/minf/stbl/co64"], 8)
        assert [offset - len(header) for offset in offsets] == list(read.tracks[number].chunks)


def test_beyond_a_day_times_have_64_bits(fragmented: Path, tmp_path: Path) -> None:
    with open(fragmented, "rb") as file:
        read = read_fragments(file)
    days = 60
    for track, scale in ((read.tracks[1], 12_800), (read.tracks[2], 48_000)):
        each = days * 86_400 * scale // track.samples
        track.durations, track.duration = [[track.samples, each]], track.samples * each
    path = tmp_path / "a.mp4"
    path.write_bytes(b"".join(faststart._header(read))[:-16] + struct.pack(">I4sI", 12, b"mdat", 0))
    movie, video, audio = boxes.tables(path)
    assert movie["mvhd"][0] == video["tkhd"][0] == video["mdia/mdhd"][0] == audio["edts/elst"][0] == 1  # version
    with av.open(str(path)) as container:
        assert container.duration is not None and container.duration / 86_400e6 == pytest.approx(days, rel=1e-3)
        assert container.streams.audio[0].sample_rate == 48_000 and container.streams.video[0].width == W
