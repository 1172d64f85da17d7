"""The command line: parses the arguments, runs one command, and turns what happened into an exit code.

Exit codes: 0 done; 1 a check that did not pass; 2 an error that the user can fix, printed as one line on stderr; 130 interrupted;
143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from everface.cli.parser import build_parser
from everface.core.errors import EverfaceError
from everface.core.log import start_log


class _Terminated(KeyboardInterrupt):
    """SIGTERM ends a command as Ctrl-C does: files are whole and processes are gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv by default) and return its exit code. Errors of the arguments raise SystemExit(2)."""
    args = build_parser().parse_args(argv)
    start_log()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    began_s = time.time()
    try:
        code = args.command(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EverfaceError as error:
        print("everface: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        video = _unfinished_video(began_s, getattr(args, "out", None))
        print(f"everface: interrupted{f'; the finished part is in {video} and can be played' if video else ''}", file=sys.stderr)
        return 143 if isinstance(interrupt, _Terminated) else 130


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the clean-up
    raise _Terminated


def _unfinished_video(began_s: float, out: Path | None) -> Path | None:
    """The video that was being written, if this run has written one."""
    videos = [p for p in ([out, out / "demo.mp4"] if out else []) if p.is_file()]
    return next((p for p in videos if p.stat().st_mtime > began_s - 1), None)  # an older file is from another run
