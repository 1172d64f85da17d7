"""Opens media files for reading, limited to local files and to formats that are safe to probe."""

from __future__ import annotations

import errno
from collections.abc import Generator
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from everface.core.errors import BadInput

# Demuxers that may be used: none that opens further files or addresses (playlists), none that renders text as images.
FORMATS = "wav,w64,aiff,caf,au,flac,mp3,aac,mov,ogg,amr,matroska,avi,mpegts,mpeg,flv,asf"


def open_media(path: str | Path, what: str) -> InputContainer:
    """Open a local file for reading, even if its name looks like a URL. The caller closes the container.

    `what` is the kind of file that error messages name: "audio" or "video". Raises BadInput.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise BadInput(f"{path} is a folder: pass the path of one {what} file")
        if not path.exists():
            raise BadInput(f"there is no {what} file at {path}: check the path")
        if not path.is_file():
            raise BadInput(f"{path} is not a regular file: pass the path of one {what} file")
        if path.stat().st_size == 0:
            raise BadInput(f"the {what} file {path} is empty (0 bytes): export it again")
        return av.open(f"file:{path.resolve()}", options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    except (FFmpegError, OSError, UnicodeError) as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) in (errno.EACCES, errno.ENAMETOOLONG):
            raise BadInput(f"the {what} file {path} cannot be read ({error}): check its name and permissions") from None
        raise BadInput(f"{path} is not a readable {what} file, or its start is damaged: convert or export it again") from None


def demux(container: InputContainer, *streams: AudioStream | VideoStream) -> Generator[av.Packet]:
    """The packets of these streams. PyAV's own iterator loses memory where it is dropped before its end; this one closes it."""
    yield from container.demux(*streams)


def check_codec(stream: AudioStream | VideoStream, path: str | Path) -> None:
    """Raise BadInput where libav has no decoder for it: such a stream has no context."""
    if stream.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison]  PyAV's stubs do not say so
        raise BadInput(f"{path} has a {stream.type} codec that cannot be decoded here: convert it")
