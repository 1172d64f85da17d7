"""The commands, each a thin call. A command imports its modules when it runs, so that --help is quick."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from everface import __version__
from everface.cli.flags import LIVE_TALK, MISSING, ask, deployment, sampler
from everface.cli.report import batch_bar, print_forecasts, print_live_talk, print_report, progress_bar
from everface.core import env
from everface.core.config import StreamConfig
from everface.core.errors import BadInput
from everface.core.regions import HALVES
from everface.core.standard_streams import print_output

if TYPE_CHECKING:
    from everface.runtime.planning.forecast import Forecast
    from everface.runtime.planning.placement import Placement


def demo(args: argparse.Namespace) -> None:
    from everface.avatar.demo import demo

    with progress_bar() as progress:
        report = demo(args.out, deployment(args), progress)
    print_report(report)


def render(args: argparse.Namespace) -> None:
    if args.speakers and args.second is None:
        raise BadInput("--speakers says where two people are, and there is one voice: name the other person's with --second, or leave it out")
    speakers = () if args.second is None else tuple(args.speakers or HALVES)
    stream = StreamConfig(seed=args.seed, size=args.size, sampler=sampler(args), compat=args.compat, prompt=args.prompt, speakers=speakers, crop=args.crop)
    if args.batch is not None:
        _render_batch(args, stream)
        return
    from everface.avatar.render import RenderJob, render
    from everface.avatar.story import read_story
    from everface.media.wav_stream import PCM

    options = {"weights": args.weights, "lora": args.lora, "deployment": deployment(args), "overwrite": args.force, "consent": args.consent}
    if args.story is not None:
        if args.image is not None or args.pcm or args.second is not None or args.user_audio is not None or args.paste_back:
            raise BadInput("with --story, images and audio are named in its table: everface render --story SHOTS -o OUT")
        job = RenderJob.of_story(read_story(args.story), args.out, stream, **options)
    elif args.image is None or args.audio is MISSING:
        raise BadInput("an image and audio are needed: everface render IMAGE AUDIO -o OUT, or --batch JOBS (see everface render --help)")
    else:
        pcm = PCM(*args.pcm) if args.pcm else None
        job = RenderJob(args.image, args.audio, args.out, stream=stream, pcm=pcm, second=args.second, user_audio=args.user_audio, paste_back=args.paste_back, **options)
    with progress_bar() as progress:
        report = render(job, progress)
    print_report(report)


def _render_batch(args: argparse.Namespace, stream: StreamConfig) -> None:
    if args.second is not None or args.user_audio is not None or args.paste_back:
        raise BadInput("a batch renders one voice a line, and what the model makes: leave --second, --user-audio and --paste-back out, or render its videos one by one")
    if args.image is not None or args.story is not None or args.pcm or args.out is None:
        raise BadInput("with --batch, images and audio are named in its table, and -o is a folder: everface render --batch JOBS -o DIR")
    from everface.avatar.batch import Batch, run_batch
    from everface.avatar.jobs import read_jobs

    jobs = read_jobs(args.batch, stream)
    batch = Batch(jobs, args.out, args.weights, args.lora, stream, deployment(args), args.force, args.consent)
    with batch_bar(len(jobs)) as watcher:
        done = run_batch(batch, watcher)
    print_output(done.summary)
    done.check()


def verify(args: argparse.Namespace) -> int:
    from everface.provenance.verification import verify

    verdict = verify(args.file, args.trust)
    print_output("\n".join([f"{args.file}: {verdict.lines()[0]}", *verdict.lines()[1:]]))
    return verdict.exit_code


def bench(args: argparse.Namespace) -> None:
    from everface.avatar.bench import bench
    from everface.avatar.bench_audio import bench_audio
    from everface.avatar.bench_live import bench_live

    if args.preset:
        _bench_preset(args)
        return
    stream = StreamConfig(size=args.size, sampler=sampler(args, live=args.what == "live"))
    if args.what == "ops":
        from everface.train.speed import measure_block

        print(measure_block(args.weights, deployment(args), args.size).table())
        return
    if args.what == "live":
        live = bench_live(args.weights, args.lora, stream, deployment(args, live=True), args.segments, args.minutes)
        report, text = {**asdict(live), "passed": live.passed}, live.table()
    elif args.what == "audio":
        audio = bench_audio(args.weights, args.seconds)
        report, text = asdict(audio), audio.table()
    else:
        report = asdict(bench(args.weights, args.lora, stream, deployment(args), args.repeats, args.seconds))
        text = "\n".join(f"{k:<15} {v}" for k, v in report.items())
    if args.json not in (None, True):
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if args.json is True else text)


def _bench_preset(args: argparse.Namespace) -> None:
    """The same of random weights of a preset's sizes."""
    from tempfile import TemporaryDirectory

    from everface.train.distill.presets import PRESETS
    from everface.train.speed import write_untrained

    if args.weights:
        raise BadInput("a preset is timed with random weights: give --preset or --weights, not both")
    with TemporaryDirectory() as folder:
        config = PRESETS[args.preset].model
        args.weights, args.preset, args.size = write_untrained(config, Path(folder)), None, args.size or config.size
        bench(args)


def profile_kv(args: argparse.Namespace) -> None:
    from everface.train.kv_profile import write_profile

    print_output(write_profile(args.weights, args.image, args.audio, deployment(args)))


def parity(args: argparse.Namespace) -> int:
    from everface.parity import run

    return run(args.dir, args.case, args.dtype, args.json)


def pull(args: argparse.Namespace) -> None:
    from everface.weights.pull import pull

    folder = pull(args.dir, args.model, lambda restriction: args.accept_license or ask(restriction))
    print_output(f"complete and verified; next: everface render IMAGE AUDIO -o OUT --weights {folder}")


def convert(args: argparse.Namespace) -> None:
    from everface.weights.load import open_checkpoint

    open_checkpoint(args.dir, args.lora).prepare()
    print_output(f"converted and merged into {env.cache_dir()}; {args.dir} now loads without conversion")


def _simulate_live_talk(args: argparse.Namespace) -> None:
    from everface.models.live_talk import forecast
    from everface.models.live_talk.names import ROLES
    from everface.runtime.planning.forecast import simulate
    from everface.runtime.planning.placement import place

    devices = args.devices or len(ROLES)
    if args.step_ms is None:
        print_live_talk(forecast.forecast_table(devices, args.transfer_ms, args.jitter, args.sessions, args.live), args.sessions)
        return
    decode_ms = forecast.decode_ms(forecast.CARDS[0], forecast.SIZE) if args.decode_ms is None else args.decode_ms
    placement, times = place(ROLES, devices), forecast.block_times(args.step_ms, decode_ms, args.transfer_ms, jitter=args.jitter)
    _print_forecast(placement, simulate(placement, times, sessions=args.sessions, live=args.live))


def _print_forecast(placement: Placement, forecast: Forecast) -> None:
    print(f"{'placement':<15} {' | '.join('+'.join(device) for device in placement.devices)}")
    for name, value in asdict(forecast).items():
        values = value if isinstance(value, tuple) else (value,)
        print(f"{name:<15} {' '.join(f'{v:.3g}' if v < 10 else f'{v:.1f}' for v in values)}")


def simulate(args: argparse.Namespace) -> None:
    if args.model == LIVE_TALK:
        if args.paper or args.steps != 4:
            raise BadInput(f"--paper and --steps are of Live Avatar: leave them out with --model {LIVE_TALK}")
        _simulate_live_talk(args)
        return
    from everface.models.live_avatar import forecast
    from everface.models.live_avatar.names import role_specs
    from everface.runtime.planning.forecast import simulate
    from everface.runtime.planning.placement import place

    if args.fleet is not None:
        from everface.cli.fleet import simulate_fleets

        simulate_fleets(args)
        return
    if args.paper:
        print(f"{'configuration':<20} {'fps':>6} {'paper':>6}   {'first frame':>11} {'paper':>6}")
        for what, fps, paper_fps, first_ms, paper_ms in forecast.paper_table():
            print(f"{what:<20} {fps:6.1f} {paper_fps:6.1f}   {first_ms:8.0f} ms {paper_ms or '-':>6}")
        return
    roles = role_specs(args.steps)
    devices = args.devices or min(5, len(roles))
    if args.step_ms is None:
        if args.decode_ms is not None:
            raise BadInput("the time of decoding is of no use without that of a forward: give --step-ms too")
        rows = forecast.step_cost_table(args.steps, devices, args.transfer_ms, args.jitter, args.sessions, args.live)
        print_forecasts(rows, args.steps, args.sessions)
        return
    placement = place(roles, devices)
    decode_ms = forecast.PAPER_DECODE_MS if args.decode_ms is None else args.decode_ms
    times = forecast.block_times(args.steps, args.step_ms, decode_ms, args.transfer_ms, jitter=args.jitter)
    _print_forecast(placement, simulate(placement, times, sessions=args.sessions, live=args.live))


def doctor(args: argparse.Namespace) -> int:
    if not args.plan:
        from everface.doctor.machine import doctor

        return doctor(__version__)
    from everface.doctor.plan import Question, plan

    names = ("model", "devices", "memory_gib", "step_ms", "decode_ms", "sampler", "dtype", "sessions", "size")
    return plan(Question(**{name: getattr(args, name) for name in names if getattr(args, name) is not None}))


def engine(args: argparse.Namespace) -> None:
    from everface.engine.run import EngineJob, run_engine

    if args.size:
        raise BadInput("an engine has no size of its own: each session asks for its size")
    where = replace(deployment(args), sessions=args.sessions)
    run_engine(EngineJob(args.socket, args.fd, args.weights, args.lora, sampler(args), where, args.drain, __version__))


def join(args: argparse.Namespace) -> None:
    from everface.runtime.cluster.joiner import Joiner

    Joiner(args.address, args.devices).run()


def config(args: argparse.Namespace) -> None:
    from everface.client.library import library_path, sdk

    library = library_path().parent
    flags = {
        "cflags": f"-I{sdk() / 'include'}",
        "libs": f"-L{library} -leverface -Wl,-rpath,{library}",
        "cmake_dir": str(library / "cmake" / "everface"),
    }
    asked = [name for name in flags if getattr(args, name)]
    print_output(" ".join(flags[name] for name in asked) if asked else "\n".join(f"{name:<10} {value}" for name, value in flags.items()))
