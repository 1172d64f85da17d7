"""Writing that ends early, by an exception, a kill or a full disk, leaves a video that plays, or nothing."""

import contextlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.media import boxes
from tests.media.films import H, W, beep, pattern

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput, Unavailable
from everface.media import output
from everface.media.video import probe_video, read_frames
from everface.media.video_writer import VideoWriter


def test_an_interrupted_file_plays(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        writer.write_audio(beep(200, SAMPLE_RATE))
        writer.write(pattern(37))
        raise KeyboardInterrupt
    info = probe_video(tmp_path / "a.mp4")
    assert info.frames == len(list(read_frames(tmp_path / "a.mp4"))) == 37
    assert info.audio_duration_s is not None and abs(info.audio_duration_s - 37 / 25) < 0.04
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_without_frames_nothing_is_left(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        writer.write_audio(np.zeros(640, np.float32))
        raise ZeroDivisionError
    with pytest.raises(BadInput, match="no frame was written"), VideoWriter(tmp_path / "a.mp4", H, W):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_final_name_appears_only_at_close(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_text("an older video")
    writer = VideoWriter(path, H, W)
    writer.write(pattern(60))
    hidden = [p for p in tmp_path.iterdir() if p != path]
    assert path.read_text() == "an older video" and len(hidden) == 1 and hidden[0].name.startswith(".")
    writer.close()
    writer.close()
    assert probe_video(path).frames == 60 and list(tmp_path.iterdir()) == [path]
    with pytest.raises(BadInput, match="closed"):
        writer.write(pattern(14))


def test_a_killed_writer_leaves_playable_seconds(tmp_path: Path):
    writer = VideoWriter(tmp_path / "a.mp4", H, W)
    for _ in range(10):
        writer.write_audio(np.zeros(25 * SAMPLES_PER_FRAME, np.float32))
        writer.write(pattern(25))
    (part,) = tmp_path.iterdir()  # as SIGKILL would leave it
    assert probe_video(part).frames >= 125
    writer.close()


RECORDER = """
import sys
from pathlib import Path
import numpy as np
sys.path[:] = {path!r}
from tests.media.films import H, W, pattern
from everface.core.config import SAMPLES_PER_FRAME
from everface.media.video_writer import VideoWriter
writer = VideoWriter(Path({out!r}), H, W)
for second in range(10_000):
    writer.write_audio(np.zeros(25 * SAMPLES_PER_FRAME, np.float32))
    writer.write(pattern(25))
    print(25 * (second + 1), flush=True)
"""


def test_kill_9_while_recording_loses_two_seconds_at_most(tmp_path: Path):
    code = RECORDER.format(path=sys.path, out=str(tmp_path / "a.mp4"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        written = 0
        while written < 300:
            written = int(process.stdout.readline())
        process.kill()
        written = max([written, *map(int, process.stdout.read().split())])
    (part,) = tmp_path.iterdir()
    info = probe_video(part)
    assert info.frames == len(list(read_frames(part))) >= written - 50
    assert info.audio_duration_s is not None and info.audio_duration_s >= written / 25 - 2.0


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (25, H, W, 3), np.uint8)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the kernel returns EFBIG (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(path: Path) -> str:
    """Write noise until the disk is full; returns the error's text."""
    with pytest.raises(Unavailable) as caught, VideoWriter(path, H, W) as writer:
        for seed in range(400):
            writer.write_audio(np.zeros(SAMPLE_RATE, np.float32))
            writer.write(noise(seed))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_kept(path: Path, message: str) -> None:
    info = probe_video(path)
    assert info.frames == len(list(read_frames(path))) >= 25 and info.frames % 25 == 0
    assert f"the first {info.duration_s:.1f} s are kept" in message
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_keeps_what_plays(tmp_path: Path):
    with small_disk(tmp_path):
        message = fill(tmp_path / "a.mp4")
        assert "No space left on device" in message
        check_kept(tmp_path / "a.mp4", message)


def test_a_full_disk_at_the_start_keeps_nothing(tmp_path: Path):
    with small_disk(tmp_path):
        (tmp_path / "other").write_bytes(bytes(2**20 - 4096 * 3))
        assert "nothing is kept" in fill(tmp_path / "a.mp4")
        assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_a_file_size_limit_keeps_what_plays(tmp_path: Path):
    with file_limit(2**20):
        message = fill(tmp_path / "a.mp4")
    assert "File too large" in message
    check_kept(tmp_path / "a.mp4", message)


def test_a_disk_that_fills_at_close(tmp_path: Path):
    writer = VideoWriter(tmp_path / "a.mp4", H, W)
    for seed in range(3):
        writer.write(noise(seed))
    (part,) = tmp_path.iterdir()
    with file_limit(max(part.stat().st_size, 1) + 4096), pytest.raises(Unavailable, match="cannot write"):
        writer.close()
    assert all(p.name == "a.mp4" for p in tmp_path.iterdir())


@pytest.mark.parametrize("known", [True, False])
def test_a_disk_without_room_for_the_index_keeps_the_fragments(
    known: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """An ordinary file is written beside the fragmented one. `known`: the system says before that there is no room for it."""
    path = tmp_path / "a.mp4"
    with small_disk(tmp_path):
        if not known:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))  # as with a quota
        with VideoWriter(path, H, W, None) as writer:
            for seed in range(400):
                if next(tmp_path.iterdir()).stat().st_size > 500 << 10:
                    break
                writer.write(noise(seed))
        assert writer.saved == path and "moof" in boxes.names(path) and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
        assert probe_video(path).frames == len(list(read_frames(path))) == writer.frames
    assert "is complete, but has no index (No space left on device)" in caplog.text and "-movflags +faststart" in caplog.text


def test_an_interruption_waits_for_the_index_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "UNFINISHED_S", -1.0)
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt) as caught, VideoWriter(path, H, W) as writer:
        writer.write(pattern(40))
        raise KeyboardInterrupt
    assert caught.value.__notes__[0].endswith("but has no index (interrupted)")
    assert probe_video(path).frames == 40 and "moof" in boxes.names(path) and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_replaces_no_older_video(tmp_path: Path):
    with small_disk(tmp_path):
        (tmp_path / "a.mp4").write_text("an older video")
        assert f"are kept in {tmp_path / 'a.unfinished.mp4'}" in fill(tmp_path / "a.mp4")
        assert (tmp_path / "a.mp4").read_text() == "an older video" and probe_video(tmp_path / "a.unfinished.mp4").frames >= 25


def test_a_read_only_folder_is_refused(tmp_path: Path):
    with small_disk(tmp_path):
        if subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], capture_output=True).returncode:
            pytest.skip("this user may not mount")
        with pytest.raises(BadInput, match=r"is read-only: choose another place"):
            VideoWriter(tmp_path / "a.mp4", H, W)


def test_a_part_that_somebody_deletes(tmp_path: Path):
    with pytest.raises(Unavailable, match="nothing is kept"), VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        writer.write(pattern(40))
        next(tmp_path.iterdir()).unlink()
    assert list(tmp_path.iterdir()) == []
