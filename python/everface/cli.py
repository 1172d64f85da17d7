"""The command line, floor 6. Every verb is a thin call; what a verb needs is imported when it runs, so --help is quick.

Exit codes: 0 done, 1 a check that did not pass, 2 something the user can mend (one line on stderr), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from everface import __version__
from everface.core import env
from everface.core.config import COMPATS, SAMPLERS, Deployment, StreamConfig
from everface.core.errors import EverfaceError
from everface.core.log import start_log
from everface.train.command_line import add_train

if TYPE_CHECKING:
    from everface.avatar.render import RenderReport

PLACEMENTS = ("inline", "1", "2", "3", "4", "5")


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what runs is ended as by Ctrl-C, its files whole and its processes gone."""


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    start_log()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    began = time.time()
    try:
        code = args.verb(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EverfaceError as error:
        print("everface: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        video = _video_since(began, getattr(args, "out", None))
        print(f"everface: interrupted{f'; what was finished plays from {video}' if video else ''}", file=sys.stderr)
        return 143 if isinstance(interrupt, _Terminated) else 130


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the end must not be cut short
    raise _Terminated


def _video_since(began: float, out: Path | None) -> Path | None:
    """The video under way when the user interrupted. It is written in fragments, so it plays up to the last one."""
    videos = [p for p in ([out, out / "demo.mp4"] if out else []) if p.is_file()]
    return next((p for p in videos if p.stat().st_mtime > began - 1), None)  # an older one is not of this run


def demo(args: argparse.Namespace) -> None:
    from everface.avatar.demo import demo

    with _progress() as progress:
        report = demo(args.out, _deployment(args), progress)
    _report(report)


def render(args: argparse.Namespace) -> None:
    stream = StreamConfig(seed=args.seed, size=args.size, sampler=args.sampler, compat=args.compat, prompt=args.prompt)
    from everface.avatar.render import RenderJob, render

    job = RenderJob(args.image, args.audio, args.out, args.weights, args.lora, stream, _deployment(args), args.force)
    with _progress() as progress:
        report = render(job, progress)
    _report(report)


def bench(args: argparse.Namespace) -> None:
    from everface.avatar.bench import bench

    stream = StreamConfig(size=args.size, sampler=args.sampler)
    report = asdict(bench(args.weights, args.lora, stream, _deployment(args), args.repeats, args.seconds))
    print(json.dumps(report) if args.json else "\n".join(f"{k:<15} {v}" for k, v in report.items()))


def parity(args: argparse.Namespace) -> int:
    from everface.parity import run

    return run(args.dir, args.case, args.dtype, args.json)


def pull(args: argparse.Namespace) -> None:
    from everface.weights.pull import pull

    folder = pull(args.dir)
    print(f"complete and verified; next: everface render IMAGE AUDIO -o OUT --weights {folder}")


def convert(args: argparse.Namespace) -> None:
    from everface.weights.load import open_checkpoint

    open_checkpoint(args.dir, args.lora).prepare()
    print(f"converted and merged; {args.dir} now opens at once, from {env.cache_dir()}")


def simulate(args: argparse.Namespace) -> int:
    from everface.models.live_avatar.forecast import block_times, paper_table
    from everface.models.live_avatar.names import role_specs
    from everface.runtime.planning.forecast import simulate
    from everface.runtime.planning.placement import place

    if args.paper:
        print(f"{'configuration':<20} {'fps':>6} {'paper':>6}   {'first frame':>11} {'paper':>6}")
        for what, fps, paper_fps, first_ms, paper_ms in paper_table():
            print(f"{what:<20} {fps:6.1f} {paper_fps:6.1f}   {first_ms:8.0f} ms {paper_ms or '-':>6}")
        return 0
    placement = place(role_specs(args.steps), args.devices)
    times = block_times(args.steps, args.step_ms, args.decode_ms, args.transfer_ms, jitter=args.jitter)
    report = asdict(simulate(placement, times, sessions=args.sessions, live=args.live))
    print(f"{'placement':<15} {' | '.join('+'.join(device) for device in placement.devices)}")
    for name, value in report.items():
        values = value if isinstance(value, tuple) else (value,)
        print(f"{name:<15} {' '.join(f'{v:.3g}' if v < 10 else f'{v:.1f}' for v in values)}")
    return 0


def doctor(args: argparse.Namespace) -> int:
    from everface.doctor import Question, doctor, plan

    if not args.plan:
        return doctor(__version__)
    names = ("devices", "memory_gib", "step_ms", "decode_ms", "sampler", "dtype", "sessions", "size")
    return plan(Question(**{name: getattr(args, name) for name in names if getattr(args, name) is not None}))


def _deployment(args: argparse.Namespace) -> Deployment:
    """The first CUDA device in bfloat16 where there is one, the CPU in float32 elsewhere."""
    import torch

    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
    return Deployment(args.placement, device, dtype, args.threads or env.threads())


def _size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels, as people say it -> (height, width), as arrays have it."""
    match = re.fullmatch(r"([1-9]\d{0,4})[x*]([1-9]\d{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give WIDTHxHEIGHT, for example 704x384")
    return int(match[2]), int(match[1])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


@contextmanager
def _progress() -> Iterator[Callable[[int, int | None, float], None] | None]:
    """A bar with frames, speed and time left on a terminal; nothing where stderr is a file."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("frames, {task.fields[fps]:.1f} fps,"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, fps=0.0)
        yield lambda frames, total, fps: bar.update(task, completed=frames, total=total, fps=fps)


def _report(report: RenderReport) -> None:
    """The figures of a render, as a short table."""
    rows = {
        "video": f"{report.out} ({report.width}x{report.height}, {report.seconds:.2f} s)",
        "frames": f"{report.frames}",
        "speed": f"{report.fps:.1f} frames per second, {report.render_s:.1f} s in all, decode and mp4 included",
        "first frame": f"{report.first_frame_s:.2f} s after the first sound",
        "placement": f"{report.placement}, sampler {report.sampler}, compat {report.compat}",
        "seed": f"{report.seed}",
    }
    print("\n".join(f"{name:<12} {value}" for name, value in rows.items()))


class _Parser(argparse.ArgumentParser):
    """Says errors in the one-line form of every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"everface: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="everface", description="Sound goes in, a talking face comes out, for ever.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"everface {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    add = _adder(verbs)

    p = add("demo", demo, "render the bundled picture and voice with the bundled model", "demo")
    p.add_argument("-o", "--out", type=Path, default=Path("out"), metavar="DIR", help="folder to write to (%(default)s)")
    _add_deployment_flags(p)

    p = add("render", render, "make a video of a picture saying a sound", "render face.png speech.wav -o talk.mp4")
    p.add_argument("image", type=Path, metavar="IMAGE", help="a portrait: any still image file")
    p.add_argument("audio", type=Path, metavar="AUDIO", help="speech: wav, flac, mp3, m4a or ogg")
    p.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the video to write, .mp4")
    _add_model_flags(p)
    p.add_argument("--prompt", default="", help="a sentence about the scene, for models that read one")
    p.add_argument("--seed", type=int, default=StreamConfig.seed, help="same seed, same video (%(default)s)")
    p.add_argument("--compat", choices=COMPATS, default=StreamConfig.compat, help="official: repeat upstream's accidents too")
    p.add_argument("--force", action="store_true", help="overwrite OUT")

    p = add("bench", bench, "time the stream on this machine, block by block", "bench --threads 2")
    _add_model_flags(p)
    p.add_argument("--repeats", type=_count, default=5, metavar="N", help="counted runs (%(default)s)")
    p.add_argument("--seconds", type=_count, default=8, metavar="S", help="sound in each (%(default)s)")
    p.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    p = add("parity", parity, "hold this build to a folder of golden data", "parity tests/golden")
    p.add_argument("dir", type=Path, metavar="DIR", help="folder of .safetensors cases")
    p.add_argument("--case", help="only this case")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute in it (%(default)s)")
    p.add_argument("--json", action="store_true", help="print JSON")

    p = add("simulate", simulate, "foretell rate and first frame from measured times", "simulate --devices 5 --step-ms 122 --decode-ms 69")
    p.add_argument("--paper", action="store_true", help="the paper's configurations beside its figures, and nothing else")
    p.add_argument("--devices", type=_count, default=5, metavar="N", help="at most one a role (%(default)s)")
    p.add_argument("--steps", type=_count, default=4, metavar="N", help="forwards a block (%(default)s)")
    p.add_argument("--step-ms", type=float, default=265.5, metavar="MS", help="one forward (%(default)s, the paper's)")
    p.add_argument("--decode-ms", type=float, default=150.0, metavar="MS", help="decoding a block (%(default)s)")
    p.add_argument("--transfer-ms", type=float, default=0.5, metavar="MS", help="from device to device (%(default)s)")
    p.add_argument("--jitter", type=float, default=0.0, metavar="CV", help="of all times, standard deviation / mean (%(default)s)")
    p.add_argument("--sessions", type=_count, default=1, metavar="N", help="viewers (%(default)s)")
    p.add_argument("--live", action="store_true", help="sound comes as it is spoken, not at once")

    p = add("pull", pull, "download the official weights, 47 GB, resumable", "pull")
    p.add_argument("--dir", type=Path, metavar="DIR", help="where to (live-avatar in the cache, which EVERFACE_CACHE names)")

    p = add("convert", convert, "convert and merge a checkpoint now, not at its first use", "convert weights/live-avatar")
    p.add_argument("dir", type=Path, metavar="DIR", help="folder of the checkpoint")
    p.add_argument("--lora", type=Path, metavar="FILE", help="the LoRA to merge (liveavatar.safetensors in DIR, when it is there)")

    p = add("doctor", doctor, "say what this machine has and what is missing, or how to place the official model", "doctor")
    p.add_argument("--plan", action="store_true", help="foretell every number of devices for the official model, and the best")
    p.add_argument("--devices", type=_count, metavar="N", help="plan for so many (this machine's)")
    p.add_argument("--memory", type=float, dest="memory_gib", metavar="GIB", help="of each device (what they have)")
    p.add_argument("--step-ms", type=float, metavar="MS", help="one forward, as measured (265.5, the paper's)")
    p.add_argument("--decode-ms", type=float, metavar="MS", help="decoding a block, as measured (150, the paper's)")
    p.add_argument("--sampler", choices=SAMPLERS, help=f"four forwards a block, or three ({StreamConfig.sampler})")
    p.add_argument("--dtype", choices=("bf16", "fp8"), help="of the weights (bf16)")
    p.add_argument("--sessions", type=_count, metavar="N", help="viewers at a time (1)")
    p.add_argument("--size", type=_size, metavar="WxH", help="of the video (704x384)")
    train = add("train", None, "train the bundled model, or evaluate it", "train evaluate")
    what = _adder(train.add_subparsers(title="what", metavar="WHAT", required=True), "train ")
    add_train(what, _count, _add_deployment_flags, _deployment)
    return parser


def _adder(verbs: argparse._SubParsersAction, prefix: str = "") -> Callable[..., argparse.ArgumentParser]:
    def add(name: str, run: Callable | None, does: str, example: str) -> argparse.ArgumentParser:
        p = verbs.add_parser(
            name,
            help=does,
            description=does[0].upper() + does[1:] + ".",
            epilog=f"example: everface {prefix}{example}",
            allow_abbrev=False,
        )
        p.set_defaults(verb=run)
        return p

    return add


def _add_model_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder of a converted checkpoint (the bundled model)")
    p.add_argument("--lora", type=Path, metavar="FILE", help="a LoRA to merge into it, .safetensors")
    p.add_argument("--size", type=_size, metavar="WxH", help="size of the video (from the picture's shape)")
    p.add_argument("--sampler", choices=SAMPLERS, default=StreamConfig.sampler, help="four forwards a block, or three (%(default)s)")
    _add_deployment_flags(p)


def _add_deployment_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--placement", choices=PLACEMENTS, default="inline", help="one process, or so many (%(default)s)")
    p.add_argument("--threads", type=_count, metavar="N", help="CPU threads a process (torch's own choice)")
