"""All figures of a machine with one GPU, in one command: tests, kernels, steps, decoder, sessions.

    python -m bench.gpu                      what is missing in bench/results/<gpu>/, the first round first, within 540 s
    python -m bench.gpu --round 2            one of three rounds; each ends within 540 s and is of use alone
    python -m bench.gpu --attention gluon-e4m3,cudnn                 a step and a session by each
    python -m bench.gpu --parts session --soak 300 --again           one part, though it was measured before
    python -m bench.gpu --tiny               on the CPU, at tiny sizes, to see that it runs

Each part is a separate process with a limit: a failure, a hang or a lack of memory costs what was running, nothing else. Rows that are there
and passed are not measured again, except with --again. A part starts only if its whole limit is left of the budget.
bench/evidence.py describes the files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.evidence import Evidence
from bench.parts import ATTENTIONS, GPU_TESTS, PARTS, ROOT, ROUND_S, ROUNDS, SOAK_S, Part, chosen_parts, gpu_test_files
from bench.rows import commit

PACK_S, GRACE_S = 20.0, 5.0  # between two archives during a part; from the request to end to the end
CPU = {"gpu": "cpu"}
ASK = """
import json, sys, torch
on = torch.cuda.is_available()
print(json.dumps({"gpu": torch.cuda.get_device_name() if on else "", "python": sys.version.split()[0], "torch": torch.__version__,
                  "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}))
"""


def command(part: Part, evidence: Evidence, name: str, already: Path, soak_s: float, commit: str | None) -> list[str]:
    """The process of a part."""
    words = [file for word in part.words for file in (gpu_test_files() if word == GPU_TESTS else [word])]
    if "-n" in words and find_spec("xdist") is None:  # then one after another
        words = words[words.index("-n") + 2 :]
    plugin = ["-p", "bench.rows", "--rows", str(evidence.file(name, "jsonl")), "--except", str(already)]
    plugin += ["--commit", commit] if commit else []
    options = [*(["--attention", part.attention] if part.attention else []), *(["--soak", str(soak_s)] if part.soaks else [])]
    files = [f"--junitxml={evidence.file(name, 'xml')}"]
    return [sys.executable, "-m", "pytest", "-v", "-ra", "-p", "no:cacheprovider", *plugin, *files, *words, *options]


def run(words: list[str], env: dict[str, str], limit_s: float, log: Path, meanwhile: Callable[[], None]) -> int:
    """Exit status; 124 if it had to be ended, with every process that it started. `meanwhile` is called now and then."""
    with log.open("ab") as out:
        child = subprocess.Popen(words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        try:
            end_s = time.monotonic() + limit_s - GRACE_S
            while (left_s := end_s - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(min(PACK_S, left_s))
                meanwhile()
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
            return 124
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def machine() -> dict[str, Any]:
    """The GPU's name, "" without one, and the versions that matter."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--round", type=int, choices=list(ROUNDS), help="the parts of one round only")
    parser.add_argument("--parts", help=f"these, in this order: {', '.join(PARTS)}")
    parser.add_argument("--attention", help=f"step and session by these attention backends: {', '.join(ATTENTIONS)}")
    parser.add_argument("--budget", type=float, default=ROUND_S, help="seconds in all (%(default)s)")
    parser.add_argument("--soak", type=float, default=SOAK_S, help="seconds that a session streams (%(default)s)")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    parser.add_argument("--commit", help="of the tree, where git is missing")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--pack", type=Path, help="an archive of the results, written again after each part and every 20 s")
    parser.add_argument("--tiny", action="store_true", help="on the CPU")
    return parser


def measure(name: str, evidence: Evidence, args: argparse.Namespace, left_s: float) -> str:
    """Run a part if it is due. Returns what happened in a line."""
    part = PARTS[name]
    limit_s = part.limit(args.soak)
    if args.again:
        evidence.forget(name)
    if evidence.is_done(name):
        return f"there already, of commit {evidence.summary['parts'][name]['commit']}"
    if part.needs and evidence.failed(part.needs):
        return f"left out: {part.needs} did not pass"
    if limit_s > left_s:
        return f"left out: it may take {limit_s:.0f} s, and {max(0.0, left_s):.0f} of the budget are left"
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if args.tiny else {})}
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench") as scratch:
        (already := Path(scratch, "already")).write_text("\n".join(evidence.passed_names(name)))
        words = command(part, evidence, name, already, args.soak, args.commit)
        rc = run(words, env, limit_s, evidence.file(name, "log"), evidence.pack)
    seconds = round(time.monotonic() - start_s, 1)
    evidence.record(name, rc=rc, seconds=seconds, limit_s=limit_s, commit=args.commit or commit())
    return f"rc {rc}, {seconds} s of {limit_s:.0f}"


def main(argv: list[str] | None = None) -> int:
    parser, began_s = arguments(), time.monotonic()
    args = parser.parse_args(argv)
    try:
        names = chosen_parts(args.parts, args.round, args.attention)
    except ValueError as error:
        parser.error(str(error))
    here = CPU if args.tiny else machine()
    if not here["gpu"]:
        parser.error("no GPU is here: use --tiny to see that it runs")
    folder = args.out / re.sub(r"[^a-z0-9]+", "-", here["gpu"].lower().removeprefix("nvidia ")).strip("-")
    evidence = Evidence(folder, ROOT, here, args.pack)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended too
    for name in names:
        said = measure(name, evidence, args, args.budget - (time.monotonic() - began_s))
        print(f"{name}: {said}", flush=True)
    for name in names:
        print("\n".join(evidence.table(name)))
    evidence.pack()
    return int(any(evidence.failed(name) for name in names))


if __name__ == "__main__":
    sys.exit(main())
