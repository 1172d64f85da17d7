"""python -m tests.simulation [--seeds N] [--first SEED]: trials on all cores. Exit code 1 if an invariant did not hold."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.trials import Outcome, run_quietly

from everface.core.machine import cores


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="The real scheduler on virtual time, with seeded faults.")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="trials (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="first seed, to repeat a trial (%(default)s)")
    args = parser.parse_args()
    began, share = time.monotonic(), -(-args.seeds // cores())
    end = args.first + args.seeds
    parts = [range(at, min(at + share, end)) for at in range(args.first, end, share)]
    with ProcessPoolExecutor(len(parts), multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(run_quietly, parts))
    failed = {seed: what for part, _ in results for seed, what in part.items()}
    for seed, what in sorted(failed.items())[:20]:
        print(f"seed {seed}: {what}\n  again: python -m tests.simulation --first {seed} --seeds 1")
    print(f"{'seeds':<15} {args.seeds} from {args.first}, {len(failed)} broke an invariant, {time.monotonic() - began:.0f} s")
    for at, name in enumerate(Outcome.__dataclass_fields__):
        print(f"{name:<15} {sum(sums[at] for _, sums in results)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
