"""The command line: parses the arguments, runs one command, and turns what happened into an exit code.

Exit codes: 0 done; 1 a check that did not pass; 2 an error that the user can fix, printed as one line on stderr, such as output that
cannot be written; 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import contextlib
import traceback
from collections.abc import Sequence
from typing import Any

from everface.cli.interruption import Interruption
from everface.cli.parser import build_parser
from everface.cli.system_errors import check_folder, describe
from everface.core.errors import EverfaceError
from everface.core.log import start_log
from everface.core.standard_streams import Output, OutputLost, print_line, standard_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv by default) and return its exit code. Errors of the arguments raise SystemExit(2)."""
    interruption = Interruption()
    with standard_streams() as output:
        try:
            code = _run(argv, interruption)
        except SystemExit as end:  # of --help, --version, or a wrong argument
            end.code = _finish(output, end.code)
            raise
        code = _finish(output, code)
        interruption.end()
        return code


def _run(argv: Sequence[str] | None, interruption: Interruption) -> int:
    try:
        with interruption:
            code = _run_command(argv)
    except KeyboardInterrupt as interrupt:
        _complain("; ".join(["interrupted", *_notes(interrupt)]))
        return interruption.exit_code
    except Exception:
        if interruption.signal is None:
            raise
        with contextlib.suppress(OSError):  # it came while the interruption was dealt with
            traceback.print_exc()
        return interruption.exit_code
    return code if interruption.signal is None else interruption.exit_code


def _run_command(argv: Sequence[str] | None) -> int:
    args: argparse.Namespace | None = None
    try:
        args = build_parser().parse_args(argv)
        start_log()
        check_folder()
        return args.command(args) or 0
    except OutputLost:
        return 0  # main() reports it
    except EverfaceError as error:
        _complain("; ".join([str(error), *_notes(error)]))
        return 2
    except OSError as error:
        if (sentence := describe(error, args)) is None:
            raise
        _complain("; ".join([sentence, *_notes(error)]))
        return 2


def _notes(error: BaseException) -> list[str]:
    """What was added to it on its way: what became of an unfinished video."""
    return getattr(error, "__notes__", [])


def _finish(output: Output, code: Any) -> Any:
    """The exit code, which is 2 instead of 0 if the output was lost; a reader that has gone, as `| head` does, has all that it wants."""
    lost = output.finish()
    if code or lost is None or lost.reader_gone:
        return code
    _complain(f"the output cannot be written ({lost.strerror}): free some space, or send it elsewhere")
    return 2


def _complain(sentence: str) -> None:
    print_line(f"everface: {sentence}")
