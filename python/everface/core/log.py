"""The package's logger. Choices made at start (backend, tiles, dtype, placement) are logged in one line each."""

from __future__ import annotations

import logging

from everface.core import env

log = logging.getLogger("everface")


def start_log() -> None:
    """Send the package's log to stderr, at the level that EVERFACE_LOG sets. The command line and worker processes call it."""
    logging.basicConfig(format="%(asctime)s %(processName)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(env.log_level())
