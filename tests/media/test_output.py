"""Names: a finished video is never replaced by an unfinished one, nor by one that nobody expected. And pipes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.media import boxes
from tests.media.films import H, W, pattern

from everface.core.config import SAMPLES_PER_FRAME
from everface.core.errors import BadInput, Unavailable
from everface.media import output
from everface.media.video import probe_video
from everface.media.video_writer import VideoWriter

OLD = "an older video"


def interrupt(path: Path, count: int = 40) -> str:
    """Write `count` frames, then press Ctrl-C; returns what is said about it."""
    with pytest.raises(KeyboardInterrupt) as caught, VideoWriter(path, H, W) as writer:
        writer.write(pattern(count))
        raise KeyboardInterrupt
    return " ".join(caught.value.__notes__)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_unfinished_video_is_an_ordinary_file_too(tmp_path: Path) -> None:
    said = interrupt(tmp_path / "a.mp4")
    assert said == f"the first 1.6 s are in {tmp_path / 'a.mp4'} and can be played"
    assert boxes.names(tmp_path / "a.mp4") == ["ftyp", "moov", "mdat"] and probe_video(tmp_path / "a.mp4").frames == 40


def test_an_unfinished_video_replaces_no_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text(OLD)
    for name in ("a.unfinished.mp4", "a.unfinished-2.mp4", "a.unfinished-3.mp4"):
        said = interrupt(path)
        assert said == f"{path} is as it was, and the first 1.6 s are in {tmp_path / name} and can be played"
        assert probe_video(tmp_path / name).frames == 40
    assert path.read_text() == OLD
    assert names(tmp_path) == ["a.mp4", "a.unfinished-2.mp4", "a.unfinished-3.mp4", "a.unfinished.mp4"]


def test_an_error_replaces_no_older_video_either(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text(OLD)
    with pytest.raises(BadInput) as caught, VideoWriter(tmp_path / "a.mp4", H, W) as writer:
        writer.write(pattern(40))
        raise BadInput("the audio is damaged")
    assert "1.6 s are in" in caught.value.__notes__[0]
    assert (tmp_path / "a.mp4").read_text() == OLD and names(tmp_path) == ["a.mp4", "a.unfinished.mp4"]


def test_a_finished_video_replaces_what_was_there_but_not_what_came_meanwhile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.mp4"
    path.write_text(OLD)
    with VideoWriter(path, H, W) as writer:
        writer.write(pattern(40))
    assert probe_video(path).frames == 40 and writer.saved == path
    with VideoWriter(tmp_path / "b.mp4", H, W) as first, VideoWriter(tmp_path / "b.mp4", H, W) as second:
        first.write(pattern(30))
        second.write(pattern(20))
    assert (second.saved, first.saved) == (tmp_path / "b.mp4", tmp_path / "b-2.mp4")
    assert probe_video(tmp_path / "b.mp4").frames == 20 and probe_video(tmp_path / "b-2.mp4").frames == 30
    assert f"this video is in {tmp_path / 'b-2.mp4'}" in caplog.text
    assert names(tmp_path) == ["a.mp4", "b-2.mp4", "b.mp4"]


def test_without_hard_links_and_with_a_long_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # what FAT says

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / f"{'ä' * 125}.mp4"  # 254 bytes
    interrupt(path)
    interrupt(path)
    assert probe_video(path).frames == probe_video(tmp_path / f"{'ä' * 100}.unfinished.mp4").frames == 40


def test_ctrl_c_while_a_finished_video_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rewriting = tmp_path / "a.mp4", threading.Event()
    path.write_text(OLD)

    def slow(source: Path, target: Path, give_up: Callable[[], bool]) -> None:
        rewriting.set()
        while not give_up():
            pass
        raise InterruptedError(4, "interrupted")

    monkeypatch.setattr(output, "rewrite", slow)
    monkeypatch.setattr("everface.media.output.UNFINISHED_S", 0.0)
    main = threading.main_thread().ident
    assert main is not None
    press = threading.Thread(target=lambda: (rewriting.wait(), signal.pthread_kill(main, signal.SIGINT)))
    press.start()
    with pytest.raises(KeyboardInterrupt) as caught, VideoWriter(path, H, W) as writer:
        writer.write(pattern(40))
    press.join()
    assert caught.value.__notes__ == [f"the video is complete in {path}"]
    assert probe_video(path).frames == 40 and "moof" in boxes.names(path) and names(tmp_path) == ["a.mp4"]


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dev.mp4").symlink_to("/dev/null")
    (tmp_path / "away.mp4").symlink_to("/proc/a.mp4/b")
    cases = {
        tmp_path / ("x" * 300 + ".mp4"): "File name too long",
        tmp_path / "dev.mp4": "neither a file nor a pipe",
        tmp_path / "pipe": "end the name with .mp4",
        Path("/proc/self/a.mp4"): "cannot write",
    }
    for path, message in cases.items():
        with pytest.raises(BadInput, match=message) as caught:
            VideoWriter(path, H, W)
        assert "\n" not in str(caught.value)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    os.mkfifo(tmp_path / "a.mp4")
    yield tmp_path / "a.mp4"


def test_a_pipe_gets_the_fragments_and_stays_a_pipe(pipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    reader = threading.Thread(target=lambda: copy.write_bytes(pipe.read_bytes()))
    reader.start()
    with VideoWriter(pipe, H, W) as writer:
        for _ in range(10):
            writer.write_audio(np.zeros(25 * SAMPLES_PER_FRAME, np.float32))
            writer.write(pattern(25))
    reader.join()
    assert pipe.is_fifo() and writer.saved == pipe and names(tmp_path) == ["a.mp4", "copy.mp4"]
    assert probe_video(copy).frames == 250 and boxes.names(copy)[:4] == ["ftyp", "moov", "moof", "mdat"]
    assert "mfra" not in boxes.names(copy)  # an index of all fragments, for which a long stream would keep memory


def test_a_reader_that_leaves_ends_the_video(pipe: Path) -> None:
    def read() -> None:
        with open(pipe, "rb") as file:
            file.read(1000)

    reader = threading.Thread(target=read)
    reader.start()
    noise = np.random.default_rng(0).integers(0, 256, (25, H, W, 3), np.uint8)
    with pytest.raises(Unavailable, match=r"Broken pipe.*start its reader again"), VideoWriter(pipe, H, W, None) as writer:
        for _ in range(40):
            writer.write(noise)
    reader.join()
    assert pipe.is_fifo()
