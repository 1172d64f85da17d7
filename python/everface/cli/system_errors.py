"""Errors of the operating system that a user can fix, as one sentence."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

from everface.core.errors import BadInput

FIXES = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "check where its links lead",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "choose another place",
    errno.EIO: "check its disk",
    errno.EMFILE: "close other programs, or raise ulimit -n",
    errno.ENFILE: "close other programs",
}
PATH_FIXES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name a folder, or another place",
}  # of paths that the user has named; about any other path they are a bug


def describe(error: OSError, args: argparse.Namespace | None) -> str | None:
    """The sentence for an error while the command of `args` ran; None if the error is a bug."""
    named = None if error.filename is None else os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    given = [str(value) for value in vars(args).values() if isinstance(value, Path)] if args else []
    fix = FIXES.get(error.errno or 0)
    if fix is None and named is not None and any(named.startswith(path) for path in given if path != "."):
        fix = PATH_FIXES.get(error.errno or 0)
    if fix is None:
        return None
    return f"{named or 'a file'} cannot be used ({error.strerror}): {fix}"


def check_folder() -> None:
    """Raise BadInput if the current folder was deleted: no relative path leads anywhere, and torch cannot be imported."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise BadInput("the current folder has been deleted: change to another one") from None
