"""How threads share the interpreter."""

from __future__ import annotations

import sys

SWITCH_S = 2e-4  # a message wakes a thread, which may wait so long for the interpreter; Python's own 5 ms are a tail of a block's time


def switch_quickly() -> None:
    """Threads that want the interpreter get it within SWITCH_S. For a process that serves clients: the setting is the whole process's."""
    sys.setswitchinterval(SWITCH_S)
