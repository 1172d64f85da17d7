"""Writes deploy/requirements.txt: what the image installs, each package with its version and the hash of its file.

    python -m deploy.lock [CONSTRAINTS]

Without torch, which comes from an index of its own, and what only its CUDA builds need. For the interpreter and system that it runs on.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LOCK = HERE / "requirements.txt"
EXTRAS = "serve,provenance,heic,native"
ALSO = ("setuptools>=77",)  # builds the wheel, offline
ELSEWHERE = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
HEAD = f"# What everface[{EXTRAS}] needs besides torch, on {{system}}. Made by: python -m deploy.lock\n"


def lock(constraints: list[str]) -> str:
    """The text of the lock. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        command += [part for path in constraints for part in ("-c", path)]
        subprocess.run([*command, f"{HERE.parent}[{EXTRAS}]", *ALSO], check=True)
        found = json.loads(report.read_text())
    lines: dict[str, str] = {}
    for entry in found["install"]:
        name, version = re.sub(r"[-_.]+", "-", entry["metadata"]["name"]).lower(), entry["metadata"]["version"]
        digest = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if name != "everface" and digest and not ELSEWHERE.fullmatch(name):
            lines[name] = f"{name}=={version} --hash=sha256:{digest}"
    environment = found["environment"]
    system = f"{environment['sys_platform']} {environment['platform_machine']}, Python {environment['python_version']}"
    return HEAD.format(system=system) + "".join(f"{lines[name]}\n" for name in sorted(lines))


if __name__ == "__main__":
    LOCK.write_text(lock(sys.argv[1:]))
