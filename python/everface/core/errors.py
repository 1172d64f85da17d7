"""Errors that a user can fix. Everything else is a bug and keeps its traceback."""


class EverfaceError(Exception):
    """One sentence for the user: what is wrong, why, and how to fix it. The command line prints it and exits with 2."""


class BadInput(EverfaceError, ValueError):
    """A file, an option or audio that cannot be used as it is."""


class BadWeights(EverfaceError, ValueError):
    """A checkpoint that is missing, truncated, modified, or of another architecture."""


class Unavailable(EverfaceError, RuntimeError):
    """This machine lacks something (a package, a device, memory, disk space), or a session or pipeline has ended."""
