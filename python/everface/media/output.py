"""Where a video goes: into a file that grows under a hidden name and gets its own when it is closed, or into a pipe (`output_pipe`).

While it grows, the video is a fragmented MP4, which plays even if the process is killed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from av.error import FFmpegError

from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.core.log import log
from everface.media.faststart import rewrite
from everface.media.fragments import file_boxes
from everface.media.output_pipe import OutputPipe, open_pipe
from everface.media.video import probe_video

MOST_STEM_BYTES = 200  # of a name that gets an addition: file systems allow 255 bytes in all
MOST_UNFINISHED = 256 << 20  # bytes of an unfinished video that is signed; of one that is finished, any size
UNFINISHED_S = 5.0  # most time to make an unfinished video an ordinary MP4: somebody pressed Ctrl-C and waits


def check_output(path: Path) -> None:
    """Raise BadInput if no video can be written to `path`. Nothing is created."""
    try:
        if path.suffix.lower() != ".mp4":
            raise BadInput(f"{path.name!r} cannot be written, because everface writes MP4 files: end the name with .mp4")
        if path.is_dir():
            raise BadInput(f"cannot write {path}, because it is a folder: name a file")
        if not path.parent.is_dir():
            raise BadInput(f"cannot write {path}, because there is no folder {path.parent}: create it first")
        if path.is_fifo():
            return
        if path.exists() and not path.is_file():
            raise BadInput(f"cannot write {path}, because it is neither a file nor a pipe: choose another name")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise BadInput(f"cannot write {path}, because {path.parent} is read-only: choose another place")
    except OSError as error:
        raise BadInput(f"cannot write {path} ({error.strerror}): choose another name or place") from None


Sign = Callable[[Path, Path], None]  # write the MP4 of the first path, signed, to the second


class OutputFile:
    """The file for `path`; libav writes the video to `target`. Raises BadInput if it cannot be created. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved: Path | None = None  # where it is, once it is closed
        self.fragmented: str | None = None  # why it could not be made an ordinary MP4
        self.sign: Sign | None = None  # an ordinary MP4 is signed before it gets its name
        self.unsigned: str | None = None  # why it is not
        self.give_up_s = float("inf")  # when to stop trying, by time.monotonic()
        self._replaces = path.exists()  # there is an older file, which a finished one may replace
        self._hidden = self._hidden_name()
        self.target = f"file:{self._hidden}"
        try:
            self._hidden.touch(exist_ok=False)
        except OSError as error:
            raise BadInput(f"cannot write {path} ({error.strerror}): choose another place") from None

    def close(self, finished: bool) -> None:
        """Make the video an ordinary MP4, if that can be done, and give it its name. Raises OSError.

        An older file of that name is replaced only if the video is `finished`, and only if it was there from the beginning. Otherwise
        the video gets a name beside it that is free: talk.unfinished.mp4, or talk-2.mp4 if it is finished.
        """
        if not finished:
            self.hurry()
        self._rewrite()
        if self.sign:
            self._sign(self.sign, finished)
        self._name(finished)

    def hurry(self) -> None:
        """Somebody waits for the end."""
        self.give_up_s = min(self.give_up_s, time.monotonic() + UNFINISHED_S)

    def failure(self, error: OSError | FFmpegError, size: int) -> Unavailable:
        """What to raise after `error`. The whole fragments of the first `size` bytes are kept."""
        return Unavailable(f"cannot write {self.path} ({error.strerror}), free some space: {self.keep_fragments(size)}")

    def keep_fragments(self, size: int) -> str:
        """After a write failed: keep the whole fragments of the first `size` bytes. Returns a sentence about what is kept."""
        kept_s = 0.0
        try:
            _cut_torn_fragment(self._hidden, size)
            kept_s = probe_video(self._hidden).duration_s
            self._name(finished=False)
            return f"the first {kept_s:.1f} s are kept in {self.saved} and can be played"
        except (OSError, EverfaceError):
            if kept_s:
                return f"the data written so far is kept in {self._hidden}"
            self.remove()
            return "nothing is kept"

    def size(self) -> int:
        """Bytes written so far."""
        return self._hidden.stat().st_size if self._hidden.exists() else 0

    def remove(self) -> None:
        self._hidden.unlink(missing_ok=True)

    def _rewrite(self) -> None:
        try:
            self._exchange(lambda old, new: rewrite(old, new, lambda: time.monotonic() > self.give_up_s))
        except OSError as error:
            self.fragmented = error.strerror or str(error)
        except Exception as error:  # a bug must not cost the video
            log.exception("%s could not be made an ordinary MP4", self._hidden)
            self.fragmented = f"{type(error).__name__}: {error}"

    def _sign(self, sign: Sign, finished: bool) -> None:
        if self.fragmented or not (finished or self.size() <= MOST_UNFINISHED):
            self.unsigned = self.fragmented or "it is unfinished, and too large to sign while somebody waits"
            return
        try:
            self._exchange(sign)
        except (OSError, EverfaceError) as error:
            self.unsigned = getattr(error, "strerror", None) or str(error)
        except Exception as error:  # of a library: it must not cost the video
            log.exception("%s could not be signed", self._hidden)
            self.unsigned = f"{type(error).__name__}: {error}"

    def _exchange(self, make: Callable[[Path, Path], None]) -> None:
        """Replace the file by what `make` writes from it. Raises what `make` raises, and OSError without space for both; the file stays then."""
        if shutil.disk_usage(self._hidden.parent).free < self.size():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        other = self._hidden_name()
        try:
            make(self._hidden, other)
            other.replace(self._hidden)
        finally:
            other.unlink(missing_ok=True)

    def _name(self, finished: bool) -> None:
        """Give the file its name, once the disk has its data."""
        _sync(self._hidden)
        if finished and self._replaces:
            self.saved = self._hidden.replace(self.path)
        else:
            self.saved = next(name for name in self._names(finished) if _moved(self._hidden, name))
        with contextlib.suppress(OSError):  # not every system can do this for a folder; then a crash may lose the name
            _sync(self.path.absolute().parent)

    def _names(self, finished: bool) -> Iterator[Path]:
        yield self.path
        stem = os.fsdecode(os.fsencode(self.path.stem)[:MOST_STEM_BYTES]) + ("" if finished else ".unfinished")
        if not finished:
            yield self.path.with_name(f"{stem}{self.path.suffix}")
        yield from (self.path.with_name(f"{stem}-{number}{self.path.suffix}") for number in itertools.count(2))

    def _hidden_name(self) -> Path:
        return self.path.absolute().parent / f".everface-{secrets.token_hex(6)}.part"


def open_output(path: Path) -> OutputFile | OutputPipe:
    """Raises BadInput if no video can be written to `path`."""
    check_output(path)
    return open_pipe(path) if path.is_fifo() else OutputFile(path)


def _sync(path: Path) -> None:
    """Wait until the disk has what was written to a file or folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _moved(source: Path, target: Path) -> bool:
    """Rename a file, unless there is another of that name. Raises OSError."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # this file system has no hard links
        if os.path.lexists(target):
            return False
        source.rename(target)
        return True
    source.unlink()
    return True


def _cut_torn_fragment(path: Path, size: int) -> None:
    """Truncate a fragmented MP4 after the last `mdat` box that is complete in its first `size` bytes; the rest follows a gap."""
    with open(path, "r+b") as file:
        end = max((end for name, _, _, end in file_boxes(file) if name == b"mdat" and end <= size), default=0)
        file.truncate(end)
