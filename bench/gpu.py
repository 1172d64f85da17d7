"""All figures of a machine with one GPU, in one command: tests, kernels, steps, decoder, sessions.

    python -m bench.gpu                      within 540 s, into bench/results/<gpu>/
    python -m bench.gpu --parts step,vae --soak 300 --budget 1500 --pack FILE.tar.gz
    python -m bench.gpu --tiny               on the CPU, at tiny sizes, to see that it runs

Each part is a separate process: a failure, a hang or a lack of memory costs the figures of that part only. The most valuable parts come
first; a part that cannot have LEAST_S before the budget ends is left out.
<part>.json is pytest-benchmark's, moved in place when it is complete;
summary.json has every part's exit status, seconds and last lines, and is written after each part, as is the archive of --pack.
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
import tarfile
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LEAST_S, LINES = 15.0, 15
CPU_NAME = "cpu"
KERNELS = "bench/kernels/bench_"
SESSION = "bench/stream/bench_gpu_session.py"
GPU_TESTS = "GPU_TESTS"  # replaced by the files with tests marked gpu
# name: (arguments of pytest, most seconds)
PARTS: dict[str, tuple[list[str], float]] = {
    "peaks": ([], 60),
    "kernel-tests": (["-n", "8", "--ignore", "tests/kernels/test_compile.py", "--benchmark-disable", "tests/kernels"], 150),
    "tests": (["-m", "gpu", "--continue-on-collection-errors", "--benchmark-disable", GPU_TESTS], 150),
    "step": (["bench/step/bench_step.py", "-k", "(step_bf16 or step_fp8 or one_layer) and not step_fp8_attention"], 200),
    "vae": (["bench/step/bench_vae.py"], 90),
    "session-official": ([SESSION, "-k", "official-fp8"], 240),
    "step-fp8-attention": (["bench/step/bench_step.py", "-k", "step_fp8_attention"], 120),
    "attention": ([f"{KERNELS}attention.py"], 240),  # 120 of them at most for the tests of the kernel for sm_90
    "linear": ([f"{KERNELS}linear.py"], 90),
    "session-skip-null": ([SESSION, "-k", "skip-null-fp8"], 240),
    "fused": ([f"{KERNELS}fused.py"], 90),
    "video": ([f"{KERNELS}video.py"], 150),
    "baseline": (["bench/step/bench_step.py", "-k", "baseline"], 200),
    "channel": (["bench/stream/bench_channel.py"], 90),
}


def command(part: str, soak_s: float, into: Path) -> list[str]:
    if part == "peaks":
        return [sys.executable, "-m", "bench.peaks"]
    given = PARTS[part][0]
    files = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu\n" in p.read_text())
    given = [one for arg in given for one in (files if arg == GPU_TESTS else [arg])]
    if "-n" in given and find_spec("xdist") is None:  # then one after another
        given = given[given.index("-n") + 2 :]
    options = [f"--junitxml={into.with_suffix('.xml')}"] if part.endswith("tests") else ["--benchmark-json", str(into)]
    soak = ["--soak", str(soak_s)] if SESSION in given else []
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *given, *soak, *options]


def run(words: list[str], env: dict[str, str], limit_s: float, log: Path) -> int:
    """Exit status; 124 if it had to be ended, with every process that it started."""
    with log.open("wb") as out:
        child = subprocess.Popen(words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def rows(report: dict[str, Any]) -> list[str]:
    """A line a bench: median, share of the peak, what else is short."""
    lines = []
    for bench in report.get("benchmarks", []):
        info, ms = bench["extra_info"], 1e3 * bench["stats"]["median"]
        ms = info["call_us"] / 1e3 if "call_us" in info else ms
        share = f"{info['percent_of_peak']:5.1f} %" if "percent_of_peak" in info else "       "
        more = [f"{k} {info[k]:.4g}" for k in ("fps", "launches", "error_against_bf16", "error_against_float32") if info.get(k) is not None]
        lines.append(f"  {bench['name'][:60]:60} {ms:10.3f} ms  {share}  {'  '.join(more)}")
    return lines


def gpu_name() -> str:
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="in this order")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all")
    parser.add_argument("--soak", type=float, default=60.0, help="seconds that a session streams")
    parser.add_argument("--commit", help="of the tree, where git is missing")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--pack", type=Path, help="an archive of the results, written again after each part")
    parser.add_argument("--tiny", action="store_true", help="on the CPU")
    args = parser.parse_args()
    began_s, chosen = time.monotonic(), args.parts.split(",")
    if unknown := [p for p in chosen if p not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    name = CPU_NAME if args.tiny else gpu_name()
    if not name:
        parser.error("no GPU is here: use --tiny to see that it runs")
    env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if args.tiny else {})}
    folder = args.out / re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"gpu": name, "parts": {}}
    table: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench") as scratch:
        for part in chosen:
            left_s, start_s = args.budget - (time.monotonic() - began_s), time.monotonic()
            if left_s < LEAST_S:
                summary["parts"][part] = {"rc": None, "seconds": 0.0, "tail": ["left out: the budget is spent"]}
                table.append(f"{part}: left out")
                continue
            made, log = Path(scratch, f"{part}.json"), Path(scratch, f"{part}.log")
            rc = run(command(part, min(2.0, args.soak) if args.tiny else args.soak, made), env, min(PARTS[part][1] + args.soak, left_s), log)
            output = log.read_text(errors="replace").replace(str(ROOT), ".").splitlines()
            summary["parts"][part] = {"rc": rc, "seconds": round(time.monotonic() - start_s, 1), "tail": output[-LINES:]}
            table.append(f"{part}: rc {rc}, {summary['parts'][part]['seconds']} s")
            if part == "peaks" and rc == 0:
                made.write_text(output[-1])
            if made.exists() and made.stat().st_size:
                report = json.loads(made.read_text())
                for bench in report.get("benchmarks", []) if args.commit else []:
                    bench["extra_info"]["commit"] = args.commit
                table += rows(report)
                partial = folder / f"{part}.json.partial"
                partial.write_text(json.dumps(report, indent=1))
                partial.replace(folder / f"{part}.json")
            (folder / "summary.json").write_text(json.dumps(summary, indent=1))
            if args.pack:
                with tarfile.open(args.pack, "w:gz") as archive:
                    archive.add(folder, arcname=folder.name)
            print(f"{part}: rc {rc}, {summary['parts'][part]['seconds']} s", flush=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print("\n".join(table))
    return int(any(p["rc"] not in (None, 0, 5) for p in summary["parts"].values()))  # 5: every test of it was skipped


if __name__ == "__main__":
    sys.exit(main())
