"""`make fuzz`: runs the harnesses on mutated inputs, guided by coverage (atheris, libFuzzer).

    python -m tests.fuzz --seconds 60                all of them, one after the other
    python -m tests.fuzz --seconds 60 --target image

Each runs in a process of its own with at most MEMORY_MB of memory and HANG_S for one input; new inputs of interest stay in build/fuzz/TARGET.
A fault ends the target's run: its input is in build/fuzz/TARGET-fault-*, and the exit code is 1. A fault that is fixed becomes a file
corpus/TARGET/fault-WHAT, which tests/fuzz/test_fuzz.py runs from then on.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "build" / "fuzz"
NAMES = sorted(path.name for path in (HERE / "corpus").iterdir())
MEMORY_MB = 2048
HANG_S = 10
MOST_BYTES = 16_384
INSTRUMENTED = [f"everface.{room}" for room in ("core", "media", "weights", "serve", "engine", "provenance", "genbench.manifest", "avatar.jobs")]
INSTRUMENTED += ["PIL", "multipart"]
SPARE_S = 180  # to start and to end
OUTCOMES = {0: "ok", 124: "did not start or end in time"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument("--target", choices=NAMES, help="one target only")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args()
    if args.here:
        run_here(args.target, args.seconds)
    results = [run(name, args.seconds) for name in ([args.target] if args.target else NAMES)]
    return int(any(results))


def run(name: str, seconds: int) -> int:
    """One target in a process. Returns its exit code and prints a line."""
    OUT.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", "--here", "--target", name, "--seconds", str(seconds)]
    with open(OUT / f"{name}.log", "w+b") as output:
        try:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=seconds + SPARE_S).returncode
        except subprocess.TimeoutExpired:
            code = 124
        output.seek(0)
        text = output.read().decode(errors="replace")
    counts = re.findall(r"^#(\d+).*?cov: (\d+)", text, re.MULTILINE)
    runs, coverage = counts[-1] if counts else ("0", "0")
    print(f"{name:<12} {runs:>10} executions  {coverage:>6} edges  {OUTCOMES.get(code, 'FAULT')}, see {OUT / name}.log", flush=True)
    return code


def run_here(name: str, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    try:
        atheris: Any = importlib.import_module("atheris")  # installed for fuzzing only
    except ModuleNotFoundError:
        sys.exit("fuzzing needs atheris: run pip install 'everface[fuzz]'")
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from tests.fuzz.targets import TARGETS

        target = TARGETS[name]()
        for seed in sorted((HERE / "corpus" / name).iterdir()):
            target.run(seed.read_bytes())  # imports what is imported late, so that it is instrumented
    found = OUT / name
    found.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={MOST_BYTES}"]
    atheris.Setup([name, str(found), str(HERE / "corpus" / name), f"-artifact_prefix={found}-fault-", *limits], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
