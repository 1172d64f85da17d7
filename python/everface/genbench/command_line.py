"""The verbs of `everface genbench`. Modules are imported when a verb runs, so that --help is quick."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everface.core import env
from everface.core.standard_streams import print_line, print_output

if TYPE_CHECKING:
    from everface.core.config import Deployment
    from everface.genbench.scoring import MetricWeights

Adder = Callable[..., argparse.ArgumentParser]
NAMES = {"set": "making the set", "clips": "making clips", "latency": "a live session", "scores": "scoring"}


def build(args: argparse.Namespace) -> None:
    from everface.core.errors import BadInput
    from everface.genbench.build import build_from, build_set

    if (args.set is None) == (args.source is None):
        raise BadInput("say what to build: short or long, or --from DIR with your own images and voices")
    folder = args.out or (_sets() / (args.set or "own"))
    with _progress() as steps:
        if args.source is not None:
            made = build_from(args.source, folder, args.limit)
        else:
            made = build_set(args.set, folder, args.limit, lambda done, many: steps("set", many, "", 0))
    print_output(f"{len(made.samples)} samples in {folder}; next: everface genbench run --set {folder} -o out/genbench")


def report(args: argparse.Namespace) -> None:
    from everface.genbench.report import to_markdown
    from everface.genbench.session import rescore

    with _progress() as steps:
        made = rescore(args.dir, _weights(args), steps)
    print_output(to_markdown(made))


def diff(args: argparse.Namespace) -> None:
    from everface.genbench.comparison import compare_reports
    from everface.genbench.report import read_report

    print_output(compare_reports(read_report(args.first), read_report(args.second)))


def add_genbench(
    add: Adder,
    count: Callable[[str], int],
    add_model_flags: Callable[[argparse.ArgumentParser], None],
    deployment: Callable[[argparse.Namespace], Deployment],
) -> None:
    """Add the verbs. `add` makes a verb's parser; the other arguments parse a count, and add and read the model flags."""

    def run(args: argparse.Namespace) -> int:
        from dataclasses import asdict

        from everface.core.config import StreamConfig
        from everface.genbench.clips.systems import EverfaceSystem, parse_system
        from everface.genbench.report import to_markdown
        from everface.genbench.session import run

        stream = StreamConfig(seed=args.seed, size=args.size, sampler=args.sampler or StreamConfig.sampler)
        settings = {"seed": stream.seed, "size": stream.size, "sampler": stream.sampler}
        everface = EverfaceSystem(settings, asdict(deployment(args)), args.weights, args.lora)
        system = parse_system(args.system, everface)
        with _progress() as steps:
            made = run(system, args.set, args.out, _sets(), args.limit, args.seconds, _weights(args), steps)
        print_output(to_markdown(made))
        print_line(f"written: {args.out}/report.html, which plays the clips, report.md and report.json")
        return 1 if len(made.failures) == made.clips else 0

    def profiles(args: argparse.Namespace) -> None:
        from everface.core.config import StreamConfig
        from everface.genbench.profiles.publish import publish_profiles, to_markdown

        stream = StreamConfig(seed=args.seed, size=args.size, sampler=args.sampler or StreamConfig.sampler)
        with _progress() as steps:
            model = args.weights, args.lora
            made = publish_profiles(stream, deployment(args), model, args.set, args.out, _sets(), args.limit, args.seconds, steps)
        print_output(to_markdown(made))
        print_line(f"written: {args.out}/profiles.json, profiles.md, and a run in a folder for each profile")

    def add_weight_flags(p: argparse.ArgumentParser) -> None:
        p.add_argument("--syncnet", type=Path, metavar="FILE", help="SyncNet's weights, .safetensors: for Sync-C and Sync-D")
        p.add_argument("--dino", type=Path, metavar="DIR", help="folder of DINOv2: for Dino-S")
        p.add_argument("--qalign", type=Path, metavar="DIR", help="folder of Q-Align: for IQA and ASE")
        p.add_argument("--trust-qalign", action="store_true", help="run the code that the folder of Q-Align brings")

    p = add("build", build, "make a set of images and voices; short and long need espeak-ng", "build short")
    p.add_argument("set", choices=("short", "long"), nargs="?", help="100 samples of about 10 s, or 15 of more than 5 minutes")
    p.add_argument("--from", type=Path, dest="source", metavar="DIR", help="instead: your own images and voices, paired by name, else in turn")
    p.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder to make it in (default: in the cache, see EVERFACE_CACHE)")
    p.add_argument("--limit", type=count, metavar="N", help="only the first samples")

    example = "run --set short --limit 8 -o out/genbench"
    p = add("run", run, "run a system over a set and report; resumable", example)
    p.add_argument("--set", required=True, metavar="SET", help="short, long (made if need be), or a manifest or its folder")
    p.add_argument("--system", default="everface", metavar="SYSTEM", help="everface, dir:PATH with videos ID.mp4, or cmd:TEMPLATE (%(default)s)")
    p.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="for clips, scores and the report")
    p.add_argument("--limit", type=count, metavar="N", help="only the first samples")
    p.add_argument("--seconds", type=count, metavar="S", help="of each clip, its voice again and again (its voice's duration)")
    p.add_argument("--seed", type=int, default=420, help="of everface (%(default)s)")
    add_model_flags(p)
    add_weight_flags(p)

    p = add("profiles", profiles, "measure how far each accelerated profile is from the exact one", "profiles -o out/profiles")
    p.add_argument("--set", default="short", metavar="SET", help="short, long, or a manifest or its folder (%(default)s)")
    p.add_argument("-o", "--out", type=Path, default=Path("out/profiles"), metavar="DIR", help="for clips and the report (%(default)s)")
    p.add_argument("--limit", type=count, default=4, metavar="N", help="only the first samples (%(default)s)")
    p.add_argument("--seconds", type=count, metavar="S", help="of each clip (its voice's duration)")
    p.add_argument("--seed", type=int, default=420, help="of all profiles (%(default)s)")
    add_model_flags(p)

    p = add("report", report, "score a run's clips again, for example with other weights, and report", "report out/genbench")
    p.add_argument("dir", type=Path, metavar="DIR", help="folder of a run")
    add_weight_flags(p)

    p = add("diff", diff, "compare two reports", "diff out/first out/second")
    p.add_argument("first", type=Path, metavar="A", help="a report.json or its folder")
    p.add_argument("second", type=Path, metavar="B", help="another")


def _sets() -> Path:
    return env.cache_dir() / "genbench"


def _weights(args: argparse.Namespace) -> MetricWeights:
    import torch

    from everface.genbench.scoring import MetricWeights

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return MetricWeights(args.syncnet, args.dino, args.qalign, args.trust_qalign, device)


@contextmanager
def _progress() -> Iterator[Any]:
    """Yields a function of (phase, things in it, thing in work, frames of it) that moves a bar; without a terminal it does nothing."""
    if not sys.stderr.isatty():
        yield lambda phase, many, thing, frames: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[thing]}"))
    bar, tasks = Progress(*columns, console=Console(stderr=True), transient=True), dict[str, Any]()

    def step(phase: str, many: int, thing: str, frames: int) -> None:
        if phase not in tasks:
            tasks[phase] = bar.add_task(NAMES[phase], total=many, thing="")
        shown = f"{thing}, {frames} frames" if frames else thing
        bar.update(tasks[phase], advance=0 if thing else 1, thing=shown)

    with contextlib.suppress(OSError):  # the terminal is gone: the work goes on
        bar.start()
    try:
        yield step
    finally:
        with contextlib.suppress(OSError):
            bar.stop()
