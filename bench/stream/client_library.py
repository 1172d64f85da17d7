"""libeverface for a bench, as `make install` installs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def install(prefix: Path) -> Path:
    """Returns the prefix."""
    subprocess.run(["make", "install", f"PREFIX={prefix}"], cwd=ROOT, check=True, capture_output=True)
    return prefix
