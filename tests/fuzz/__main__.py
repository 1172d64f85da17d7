"""`make fuzz`: runs the harnesses on mutated inputs, guided by coverage (atheris, libFuzzer).

    python -m tests.fuzz --seconds 60                all of them, one after the other
    python -m tests.fuzz --seconds 60 --target image
    python -m tests.fuzz --executions 1000000 --target image     however long they take

Of parsers that are compiled, what an input led to counts as coverage: a result's kind, or the words of an error. Each runs in a process of its own with at most MEMORY_MB of memory and HANG_S for one input; new inputs of interest stay in build/fuzz/TARGET.
A fault ends the target's run: its input is in build/fuzz/TARGET-fault-*, and the exit code is 1. A fault that is fixed becomes a file
corpus/TARGET/fault-WHAT, which tests/fuzz/test_fuzz.py runs from then on.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
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
LABELS = 256  # outcomes that are told apart
SPARE_S = 180  # to start and to end
OUTCOMES = {0: "ok", 124: "did not start or end in time"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument("--executions", type=int, help="for each target, in place of seconds")
    parser.add_argument("--target", choices=NAMES, help="one target only")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args()
    if args.here:
        run_here(args.target, args.seconds, args.executions)
    results = [run(name, args.seconds, args.executions) for name in ([args.target] if args.target else NAMES)]
    return int(any(results))


def run(name: str, seconds: int, executions: int | None) -> int:
    """One target in a process. Returns its exit code and prints a line."""
    OUT.mkdir(parents=True, exist_ok=True)
    limit = ["--seconds", str(seconds)] if executions is None else ["--executions", str(executions)]
    command = [sys.executable, "-m", "tests.fuzz", "--here", "--target", name, *limit]
    timeout_s = seconds + SPARE_S if executions is None else None
    with open(OUT / f"{name}.log", "w+b") as output:
        try:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=timeout_s).returncode
        except subprocess.TimeoutExpired:
            code = 124
        output.seek(0)
        text = output.read().decode(errors="replace")
    counts = re.findall(r"^#(\d+).*?cov: (\d+).*?(?:exec/s: (\d+)|$)", text, re.MULTILINE)
    runs, coverage, rate = counts[-1] if counts else ("0", "0", "0")
    print(f"{name:<12} {runs:>10} executions  {rate or '0':>6} per second  {coverage:>6} edges  {OUTCOMES.get(code, 'FAULT')}, see {OUT / name}.log", flush=True)
    return code


def run_here(name: str, seconds: int, executions: int | None) -> None:
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
    limits = [f"-max_total_time={seconds}" if executions is None else f"-runs={executions}"]
    limits += [f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={MOST_BYTES}"]
    logging.lastResort = None  # warnings of a million inputs
    labels = [atheris.instrument_func(_label()) for _ in range(LABELS)]

    def run_one(data: bytes) -> None:
        words = re.sub(r"[^A-Za-z ]+", "", str(target.run(data)))[:80]
        labels[zlib.crc32(words.encode()) % LABELS]()

    atheris.Setup([name, str(found), str(HERE / "corpus" / name), f"-artifact_prefix={found}-fault-", *limits], run_one)
    atheris.Fuzz()


def _label() -> Callable[[], None]:
    """A function that is covered where it is called; each has code, and a counter, that no other has."""
    names: dict[str, Any] = {}
    exec("def label(): pass", names)
    return names["label"]


if __name__ == "__main__":
    sys.exit(main())
