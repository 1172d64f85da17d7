"""The command line as a process of its own, through a shell, as users run it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(words: str, redirect: str = "", cwd: Path | None = None, **settings: str | None) -> subprocess.CompletedProcess[str]:
    """Run `everface WORDS` with shell redirections, such as `>/dev/full`. `settings`: environment variables; None: unset."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    environment = {k: v for k, v in (environment | settings).items() if v is not None}
    command = f"{shlex.quote(sys.executable)} -m everface {words} {redirect}"
    return subprocess.run(["bash", "-c", command], env=environment, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=110)


def refused(done: subprocess.CompletedProcess[str], *named: str) -> None:
    """Exit code 2, one line on stderr that names what it must, nothing else."""
    assert done.returncode == 2, done
    assert done.stderr.startswith("everface: ") and done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    for name in named:
        assert name in done.stderr, done.stderr
