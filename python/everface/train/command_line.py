"""The verbs of `everface train`: their flags and calls. Each imports its modules when it runs, so that --help is fast."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from everface.core.standard_streams import print_line

if TYPE_CHECKING:
    from everface.core.config import Deployment
    from everface.train.distill.plans import ModelPlan

Adder = Callable[..., argparse.ArgumentParser]
CONFIGS = ("tiny", "heads-256", "heads-384", "wan-s2v-14b")


def train_vae(args: argparse.Namespace) -> None:
    from everface.train.codec.vae import VAEPlan, train_vae
    from everface.train.distill.presets import PRESETS
    from everface.train.engine.plan import with_settings

    plan = with_settings(VAEPlan(minutes=float(args.minutes), clips=args.clips, seed=args.seed), "vae", args.set or [])
    print(train_vae(args.run, plan, PRESETS[args.config].model.vae, args.device, args.init))


def train_decoder(args: argparse.Namespace) -> None:
    from everface.train.codec.decoder import DecoderPlan, train_decoder
    from everface.train.engine.plan import with_settings

    plan = with_settings(DecoderPlan(minutes=float(args.minutes), seed=args.seed), "decoder", args.set or [])
    print(train_decoder(args.run, args.vae, args.data, plan, device=args.device))


def make_data(args: argparse.Namespace) -> None:
    if args.manifest:
        from everface.train.data.videos import encode_manifest

        print(encode_manifest(args.manifest, args.dir, args.vae, args.clips, args.minutes, _progress))
        return
    from everface.train.data.generate import make_data

    print(make_data(args.dir, args.vae, args.clips, args.seed, args.minutes))


def train_teacher(args: argparse.Namespace) -> None:
    from everface.train.pretrain.teacher import train_teacher

    plan = _plan(args, "teacher")
    print(train_teacher(args.run, args.clips, plan.teacher, plan.model.dit, args.device, args.init))


def train_stage1(args: argparse.Namespace) -> None:
    from everface.train.pretrain.stage1 import train_stage1

    plan = _plan(args, "stage1")
    print(train_stage1(args.run, args.clips, plan.stage1, plan.model.dit, args.device, args.init))


def train_stage2(args: argparse.Namespace) -> None:
    plan = _plan(args, "stage2")
    if args.dry_run:
        from everface.train.distill.memory_estimate import table

        print(table(plan))
        return
    from everface.core.errors import BadInput
    from everface.train.distill.stage2 import train_stage2

    if not (args.run and args.clips and args.student and args.teacher):
        raise BadInput("stage2 needs RUN, --clips, --student and --teacher; only --dry-run works without them")
    print(train_stage2(args.run, args.clips, args.student, args.teacher, plan.stage2, plan.model.dit, args.device))


def make_bundle(args: argparse.Namespace) -> None:
    from everface.train.bundle import bundle, read_portraits
    from everface.train.distill.presets import PRESETS

    portraits = read_portraits(args.portraits) if args.portraits else None
    print(bundle(args.vae, args.run, args.out, PRESETS[args.config].model, portraits))


def _progress(line: str) -> None:
    """One line about the progress of a long run, to stderr, which must not end it."""
    print_line(line)


def _plan(args: argparse.Namespace, phase: str) -> ModelPlan:
    from everface.train.distill.plans import change_plan
    from everface.train.distill.presets import PRESETS

    given = {"minutes": args.minutes, "seed": args.seed}
    return change_plan(PRESETS[args.config], phase, {k: v for k, v in given.items() if v is not None}, args.set or [])


def add_train(
    add: Adder,
    count: Callable[[str], int],
    add_deployment_flags: Callable[[argparse.ArgumentParser], None],
    deployment: Callable[[argparse.Namespace], Deployment],
) -> None:
    """Add the verbs of `train`. `add` makes a verb's parser; the other arguments parse a count, and add and read the deployment flags."""

    def evaluate(args: argparse.Namespace) -> int:
        if args.teacher:
            return compare(args)
        if args.levels:
            from everface.train.evaluate.levels import table
            from everface.train.evaluate.run import run_levels

            report = run_levels(args.weights, args.out, args.speech, args.characters, args.seconds, deployment(args), _progress)
        elif args.horizon:
            from everface.train.evaluate.horizon import table
            from everface.train.evaluate.run import run_horizon

            report = run_horizon(args.weights, args.out, args.speech, args.horizon, deployment(args), _progress)
        else:
            from everface.train.evaluate.quality import table
            from everface.train.evaluate.run import run_quality

            report = run_quality(args.weights, args.out, args.speech, args.characters, args.seconds, deployment(args))
        print(table(report))
        return 0 if report["pass"] else 1

    def compare(args: argparse.Namespace) -> int:
        from everface.train.evaluate.compare import table
        from everface.train.evaluate.run import run_comparison

        print(table(run_comparison(args.weights, args.teacher, args.out, args.speech, args.characters, deployment(args))))
        return 0

    def ablate(args: argparse.Namespace) -> None:
        from everface.train.evaluate.ablate import table
        from everface.train.evaluate.run import run_ablation

        given = (args.weights, args.student, args.out, args.speech, args.characters, args.seconds)
        print(table(run_ablation(*given, deployment(args), _progress, args.row)))

    def add_evaluation_flags(p: argparse.ArgumentParser, out: str, characters: int, seconds: int) -> None:
        p.add_argument("-o", "--out", type=Path, default=Path(out), metavar="DIR", help="for the report (%(default)s)")
        p.add_argument("--weights", type=Path, metavar="DIR", help="folder of the model (the bundled one)")
        p.add_argument("--speech", type=Path, metavar="DIR", help="folder of speech to take voices from (made with espeak-ng)")
        p.add_argument("--characters", type=count, default=characters, metavar="N", help="how many (%(default)s)")
        p.add_argument("--seconds", type=count, default=seconds, metavar="S", help="of speech each (%(default)s)")
        add_deployment_flags(p)

    def add_duration_flags(p: argparse.ArgumentParser, minutes: int, device: bool = True) -> None:
        p.add_argument("--minutes", type=count, default=minutes, metavar="N", help="duration (%(default)s)")
        p.add_argument("--seed", type=int, default=1, help="random seed (%(default)s)")
        if device:
            p.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")

    def add_set_flag(p: argparse.ArgumentParser) -> None:
        p.add_argument("--set", action="append", metavar="FIELD=VALUE", help="change a field of this phase's plan; repeatable")

    def add_plan_flags(p: argparse.ArgumentParser) -> None:
        fits = "sizes and schedules (%(default)s, whose clips `train data` writes; those of heads are by train.chain, wan-s2v-14b needs its own)"
        p.add_argument("--config", choices=CONFIGS, default=CONFIGS[0], help=fits)
        add_set_flag(p)
        p.add_argument("--minutes", type=count, metavar="N", help="duration (the plan's)")
        p.add_argument("--seed", type=int, help="random seed (the plan's)")
        p.add_argument("--device", default="cpu", help="cpu or cuda; under torchrun each rank takes its own (%(default)s)")

    p = add("vae", train_vae, "train the video VAE on drawn characters, resumable", "vae runs/vae --minutes 40")
    p.add_argument("run", type=Path, metavar="RUN", help="folder of the run: frames, log, checkpoint, weights")
    p.add_argument("--clips", type=count, default=1200, metavar="N", help="characters to draw (%(default)s)")
    p.add_argument("--init", type=Path, metavar="FILE", help="vae.safetensors of another run to start from (new weights)")
    p.add_argument("--config", choices=CONFIGS, default=CONFIGS[0], help="sizes (%(default)s)")
    add_duration_flags(p, minutes=40)
    add_set_flag(p)

    p = add("data", make_data, "make speech and training clips, resumable; needs espeak-ng", "data runs/data --vae runs/vae")
    p.add_argument("dir", type=Path, metavar="DIR", help="folder to fill: speech, clips")
    p.add_argument("--vae", type=Path, required=True, metavar="RUN", help="folder of a finished `train vae`, or a model's")
    p.add_argument("--clips", type=count, default=4000, metavar="N", help="how many (%(default)s)")
    p.add_argument("--manifest", type=Path, metavar="FILE", help="videos to cut clips from, instead of drawing them: see train/data/videos.py")
    add_duration_flags(p, minutes=60, device=False)

    p = add("decoder", train_decoder, "train the VAE's decoder on long streams, resumable", "decoder runs/decoder --vae runs/vae --data runs/data")
    p.add_argument("run", type=Path, metavar="RUN", help="folder of the run: log, checkpoint, weights")
    p.add_argument("--vae", type=Path, required=True, metavar="RUN", help="folder of a finished `train vae`, or a model's")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of `train data` with the same seed")
    add_duration_flags(p, minutes=10)
    add_set_flag(p)

    p = add("teacher", train_teacher, "train the bidirectional teacher for stage2, resumable", "teacher runs/teacher --clips runs/data/clips")
    p.add_argument("run", type=Path, metavar="RUN", help="folder of the run: log, checkpoint, weights")
    p.add_argument("--clips", type=Path, required=True, metavar="DIR", help="folder of clips, from `train data`")
    p.add_argument("--init", type=Path, metavar="FILE", help="weights to start from, such as an older student's (new weights)")
    add_plan_flags(p)

    p = add("stage1", train_stage1, "train the transformer by diffusion forcing, resumable", "stage1 runs/dit --clips runs/data/clips")
    p.add_argument("run", type=Path, metavar="RUN", help="folder of the run: log, checkpoint, weights")
    p.add_argument("--clips", type=Path, required=True, metavar="DIR", help="folder of clips, from `train data`")
    p.add_argument("--init", type=Path, metavar="FILE", help="weights to start from, such as the teacher's (new weights)")
    add_plan_flags(p)

    example = "stage2 runs/live --clips runs/data/clips --student runs/dit/dit.safetensors --teacher runs/teacher/dit.safetensors"
    p = add("stage2", train_stage2, "distill the transformer on its own rollouts, resumable", example)
    p.add_argument("run", type=Path, nargs="?", metavar="RUN", help="folder of the run: log, checkpoint, weights")
    p.add_argument("--clips", type=Path, metavar="DIR", help="folder of clips, from `train data`")
    p.add_argument("--student", type=Path, metavar="FILE", help="weights of a finished `train stage1`")
    p.add_argument("--teacher", type=Path, metavar="FILE", help="weights of a finished `train teacher`")
    p.add_argument("--dry-run", action="store_true", help="print the memory per GPU and the layout for 8 and 128 GPUs, and train nothing")
    add_plan_flags(p)

    p = add("bundle", make_bundle, "make a model folder from finished runs", "bundle runs/dit --vae runs/vae -o model")
    p.add_argument("run", type=Path, metavar="RUN", help="folder of a finished `train stage1` or `train stage2`")
    given = "folder of a finished `train decoder` or `train vae`, or a model's; several `train decoder` of one codec are averaged"
    p.add_argument("--vae", type=Path, required=True, action="append", metavar="RUN", help=given)
    p.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the model folder to write")
    p.add_argument("--config", choices=CONFIGS, default=CONFIGS[0], help="sizes that the runs have (%(default)s)")
    p.add_argument("--portraits", type=Path, metavar="DIR", help="PNG files that the model shall bring along (three drawn characters)")

    p = add("evaluate", evaluate, "evaluate a model on held-out characters and voices", "evaluate -o out/evaluate")
    add_evaluation_flags(p, "out/evaluate", characters=16, seconds=20)
    p.add_argument("--horizon", type=count, metavar="SECONDS", help="instead: windows of one stream of this length, all in this process")
    p.add_argument("--levels", action="store_true", help="instead: the same voices 3 to 30 dB quieter must move the lips alike")
    p.add_argument("--teacher", type=Path, metavar="FILE", help="instead: against forty steps of these weights of a finished `train teacher`; models without motion")

    p = add("ablate", ablate, "evaluate streams without the parts of the method, one at a time", "ablate -o out/ablate --characters 8")
    add_evaluation_flags(p, "out/ablate", characters=4, seconds=100)
    p.add_argument(
        "--student", action="append", default=[], metavar="NAME=DIR", help="a model folder trained for the row NAME, such as 'clean cache=DIR'"
    )
    p.add_argument("--row", action="append", default=[], metavar="NAME", help="evaluate only this row; repeatable (all)")
