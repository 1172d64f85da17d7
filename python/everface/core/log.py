"""One logger for the package. Choices made at start (backend, tiles, dtype, placement) are logged in one line each."""

from __future__ import annotations

import logging

from everface.core import env

log = logging.getLogger("everface")


def start_log() -> None:
    """Send the package's log to stderr at the level of EVERFACE_LOG. Called by the command line and by child processes."""
    logging.basicConfig(format="%(asctime)s %(processName)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(env.log_level())
