"""Errors a user can mend. Everything else is a bug and keeps its traceback."""


class EverfaceError(Exception):
    """One sentence for the user: what is wrong, why, and how to mend it. The command line prints it and exits with 2."""


class BadInput(EverfaceError, ValueError):
    """A file, option or stream that cannot be used as it is."""


class BadWeights(EverfaceError, ValueError):
    """A checkpoint that is missing, truncated, altered, or of another architecture."""


class Unavailable(EverfaceError, RuntimeError):
    """Something this machine lacks: a package, a device, memory, disk."""
