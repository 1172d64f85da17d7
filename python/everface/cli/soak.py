"""`everface soak`: its arguments, and the table that it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from everface.cli.flags import add_model_flags, deployment, sampler
from everface.core.config import StreamConfig
from everface.core.errors import BadInput
from everface.core.standard_streams import print_output

if TYPE_CHECKING:
    from everface.soak.rows import Row

MORE = (
    "Speech, pauses and interruptions follow each other in one session. Exit code 1: memory, descriptors or threads grew after the warm-up, "
    "audio and video moved apart, or a frame or an event was not in its place (docs/operate.md)."
)
PASSED = ("sampler", "placement", "threads", "dtype", "attention", "kv_keep", "text_weights", "image_encoder", "weights", "lora")  # to the server, as they are


def add_soak(add: Callable[..., argparse.ArgumentParser]) -> None:
    p = add("soak", run, "run one live session for hours, and watch what must not change", "soak --hours 0.5 --fast", MORE)
    p.add_argument("--hours", type=float, default=1.0, metavar="H", help="of media (%(default)s)")
    p.add_argument("--fast", action="store_true", help="as fast as the machine goes, not at the pace of the clock")
    p.add_argument("--server", action="store_true", help="through a server process and its WebSocket, as the page does")
    p.add_argument("-o", "--out", type=Path, metavar="CSV", help="write the rows to this file too")
    add_model_flags(p)


def run(args: argparse.Namespace) -> int:
    from everface.soak.run import SoakJob, soak

    if args.hours <= 0:
        raise BadInput("give --hours above zero")
    stream, flags = StreamConfig(size=args.size, sampler=sampler(args, live=True)), list[str]()
    for name in PASSED:
        if (value := getattr(args, name)) is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    if args.size:
        flags += ["--size", f"{args.size[1]}x{args.size[0]}"]
    where = deployment(args, live=True)
    first = True

    def show(row: Row) -> None:
        nonlocal first
        values = asdict(row)
        if first:
            print_output(" ".join(f"{name:>11}" for name in values))
            first = False
        print_output(" ".join(f"{value:>11}" for value in values.values()))

    report = soak(SoakJob(args.hours, args.fast, args.server, args.out, args.weights, args.lora, stream, where, tuple(flags)), show)
    print_output(report.summary())
    return int(bool(report.faults()))
