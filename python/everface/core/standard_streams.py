"""The standard streams of a command. They may be closed, full, or of an encoding without the letters of a name: no work must end by it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO, cast


class OutputLost(OSError):
    """What was printed cannot be written: the disk is full, or the reader has gone (`reader_gone`). What is printed now is discarded."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.reader_gone = isinstance(error, BrokenPipeError)


class Output:
    """A text stream whose errors are OutputLost, so that they are not taken for those of a file that a command writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OutputLost | None = None

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def finish(self) -> OutputLost | None:
        """Flush. Returns why not everything was written, even if the error was handled where it came up."""
        with contextlib.suppress(OutputLost):
            self.flush()
        return self.lost

    def _lose(self, error: OSError) -> NoReturn:
        self.lost = OutputLost(error)
        _discard(self._stream)
        raise self.lost from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """While it is open, stdout is an Output, and any name can be printed, with escapes where the encoding lacks its letters.

    Streams that are closed are opened as /dev/null. Otherwise the next file that is opened, such as a video, would get the number of a
    closed stream, and with it what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 open as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    before, output = sys.stdout, Output(sys.stdout)
    sys.stdout = cast(TextIO, output)
    try:
        yield output
    finally:
        sys.stdout = before
        try:
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)


def free_stdout() -> int:
    """A descriptor of what stdout is. Whatever prints to stdout, in this process and in its children, prints to stderr from now on."""
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def print_output(text: str) -> OutputLost | None:
    """Print lines to stdout at once. Returns why they could not be printed; the caller takes care of it."""
    try:
        print(text, flush=True)
    except OutputLost as lost:
        if isinstance(sys.stdout, Output):
            sys.stdout.lost = None
        return lost
    return None


def print_line(text: str) -> None:
    """Print one line to stderr, if it takes it."""
    with contextlib.suppress(OSError):
        print(escape(" ".join(text.split())), file=sys.stderr, flush=True)


def escape(text: str) -> str:
    """The text with escapes for what cannot be seen, such as line breaks and what moves a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _discard(stream: TextIO) -> None:
    """What the stream's buffer holds must go somewhere, or the exit of the process fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    stream.flush()
