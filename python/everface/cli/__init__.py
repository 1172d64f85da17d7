"""The command line: parses the arguments, runs one command, and turns what happened into an exit code.

Exit codes: 0 done; 1 a check that did not pass; 2 an error that the user can fix, printed as one line on stderr; 130 interrupted by
Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from everface.cli.interruption import Interruption
from everface.cli.parser import build_parser
from everface.core.errors import EverfaceError
from everface.core.log import start_log


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv by default) and return its exit code. Errors of the arguments raise SystemExit(2)."""
    args = build_parser().parse_args(argv)
    start_log()
    interruption = Interruption()
    try:
        with interruption:
            code = _run(args)
        return code if interruption.signal is None else interruption.exit_code
    except KeyboardInterrupt as interrupt:
        _complain("; ".join(["interrupted", *_notes(interrupt)]))
        return interruption.exit_code
    except Exception:
        if interruption.signal is None:
            raise
        with contextlib.suppress(OSError):  # it came while the interruption was dealt with
            traceback.print_exc()
        return interruption.exit_code
    finally:
        interruption.end()


def _run(args: argparse.Namespace) -> int:
    try:
        code = args.command(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EverfaceError as error:
        _complain("; ".join([str(error), *_notes(error)]))
        return 2


def _notes(error: BaseException) -> list[str]:
    """What was added to it on its way: what became of an unfinished video."""
    return getattr(error, "__notes__", [])


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more: the terminal was closed
        print("everface: " + " ".join(sentence.split()), file=sys.stderr, flush=True)
