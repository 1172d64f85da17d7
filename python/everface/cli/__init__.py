"""The command line: parses the arguments, runs one command, and turns what happened into an exit code.

Exit codes: 0 done; 1 a check that did not pass; 2 an error that the user can fix, printed as one line on stderr, such as output that
cannot be written; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from everface.cli.parser import build_parser
from everface.cli.system_errors import check_folder, describe
from everface.core.errors import EverfaceError
from everface.core.log import start_log
from everface.core.standard_streams import Output, OutputLost, print_line, standard_streams


class _Terminated(KeyboardInterrupt):
    """SIGTERM ends a command as Ctrl-C does: files are whole and processes are gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv by default) and return its exit code. Errors of the arguments raise SystemExit(2)."""
    with standard_streams() as output:
        try:
            code = _run(argv)
        except SystemExit as end:  # of --help, --version, or a wrong argument
            end.code = _finish(output, end.code)
            raise
        return _finish(output, code)


def _run(argv: Sequence[str] | None) -> int:
    args: argparse.Namespace | None = None
    began_s = time.time()
    try:
        args = build_parser().parse_args(argv)
        start_log()
        check_folder()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        return args.command(args) or 0
    except OutputLost:
        return 0  # main() reports it
    except EverfaceError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        if (sentence := describe(error, args)) is None:
            raise
        _complain(sentence)
        return 2
    except KeyboardInterrupt as interrupt:
        video = _unfinished_video(began_s, getattr(args, "out", None))
        _complain(f"interrupted{f'; the finished part is in {video} and can be played' if video else ''}")
        return 143 if isinstance(interrupt, _Terminated) else 130


def _finish(output: Output, code: Any) -> Any:
    """The exit code, which is 2 instead of 0 if the output was lost; a reader that has gone, as `| head` does, has all that it wants."""
    lost = output.finish()
    if code or lost is None or lost.reader_gone:
        return code
    _complain(f"the output cannot be written ({lost.strerror}): free some space, or send it elsewhere")
    return 2


def _complain(sentence: str) -> None:
    print_line(f"everface: {sentence}")


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the clean-up
    raise _Terminated


def _unfinished_video(began_s: float, out: Path | None) -> Path | None:
    """The video that was being written, if this run has written one."""
    with contextlib.suppress(OSError):  # a path that cannot be has no video
        videos = [p for p in ([out, out / "demo.mp4"] if out else []) if p.is_file()]
        return next((p for p in videos if p.stat().st_mtime > began_s - 1), None)  # an older file is from another run
    return None
