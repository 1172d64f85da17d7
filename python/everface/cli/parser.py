"""The commands' arguments and help. tests/test_cli.py lists every flag: adding one is a decision."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from everface import __version__
from everface.cli import commands
from everface.cli.flags import (
    MISSING,
    RELEASED,
    add_deployment_flags,
    add_model_flags,
    address,
    box,
    count,
    deployment,
    path_or_standard,
    pcm,
    size,
)
from everface.cli.fleet import add_fleet_flags
from everface.cli.serve import add_serve
from everface.cli.soak import add_soak
from everface.core.config import COMPATS, CROPS, SAMPLERS, Deployment, StreamConfig
from everface.genbench.command_line import add_genbench
from everface.train.command_line import add_train

EXIT_CODES = (
    "Exit codes: 0 done; 1 a check did not pass; 2 an error that you can fix, explained in one line; 130 interrupted by Ctrl-C, "
    "143 by SIGTERM, 129 by SIGHUP (a closed terminal)."
)
UNFINISHED = (
    "Interrupted, it completes the part that is rendered, which can be played; if there is an older video of that name, it stays, and "
    "the part is put beside it, as in talk.unfinished.mp4."
)
STREAMS = (
    "With - for AUDIO it reads stdin, and with - for OUT it writes a fragmented MP4 to stdout, each frame as soon as the next is made: "
    "... | everface render face.png - -o - | ffplay -"
)

Add = Callable[..., argparse.ArgumentParser]  # (name, function, what it does, example, more about it) -> the parser of a command


class _Parser(argparse.ArgumentParser):
    """Prints errors in one line, as every other error of everface."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"everface: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. `args.command(args)` of the parsed arguments runs it and returns its exit code, or None for 0."""
    description = "Real-time talking avatars: audio goes in, video of a talking face comes out."
    parser = _Parser(prog="everface", description=description, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"everface {__version__}")
    add = _adder(parser.add_subparsers(title="commands", metavar="COMMAND", required=True))
    for add_arguments in (
        _add_demo, _add_render, _add_verify, add_serve, _add_engine, _add_bench, _add_parity, _add_simulate, _add_pull, _add_convert, _add_doctor,
        _add_profile, _add_config, _add_join, add_soak,
    ):  # fmt: skip
        add_arguments(add)
    train = add("train", None, "train a model, by default one of drawn characters, or evaluate one", "train evaluate")
    what = _adder(train.add_subparsers(title="what", metavar="WHAT", required=True), "train ")
    add_train(what, count, add_deployment_flags, deployment)
    genbench = add("genbench", None, "benchmark a talking-face system: make clips, measure, report", "genbench run --set short --limit 8 -o out/genbench")
    verbs = _adder(genbench.add_subparsers(title="what", metavar="WHAT", required=True), "genbench ")
    add_genbench(verbs, count, add_model_flags, deployment)
    return parser


def _adder(subparsers: argparse._SubParsersAction, prefix: str = "") -> Add:
    def add(name: str, run: Callable | None, does: str, example: str, more: str = "") -> argparse.ArgumentParser:
        p = subparsers.add_parser(
            name,
            help=does,
            description=f"{does[0].upper()}{does[1:]}. {more}",
            epilog=f"example: everface {prefix}{example}",
            allow_abbrev=False,
        )
        p.set_defaults(command=run)
        return p

    return add


def _add_demo(add: Add) -> None:
    more = f"{UNFINISHED} {EXIT_CODES}"
    p = add("demo", commands.demo, "render the bundled image and speech with the bundled model", "demo", more)
    p.add_argument("-o", "--out", type=Path, default=Path("out"), metavar="DIR", help="folder to write to (%(default)s)")
    add_deployment_flags(p)


def _add_render(add: Add) -> None:
    example = "render face.png speech.wav -o talk.mp4"
    does = "render a video of the person in an image speaking an audio file"
    more = f"{STREAMS} {UNFINISHED} {EXIT_CODES}"
    p = add("render", commands.render, does, example, more)
    image = "a portrait: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, or HEIC with everface[heic]"
    p.add_argument("image", type=Path, nargs="?", metavar="IMAGE", help=image)
    audio = "speech: wav, w64, aiff, caf, au, flac, mp3, aac, m4a, ogg, opus, webm, mka or amr"
    p.add_argument("audio", type=path_or_standard, nargs="?", default=MISSING, metavar="AUDIO", help=audio)
    out = "the video to write, .mp4; - for stdout; with --batch the folder to write to"
    p.add_argument("-o", "--out", type=path_or_standard, required=True, metavar="OUT", help=out)
    p.add_argument("--pcm", type=pcm, metavar="RATE[:CHANNELS]", help="AUDIO is -, and stdin is raw samples: 16-bit signed little-endian")
    second = "the voice of a second person in the image, a file as AUDIO; in the video AUDIO is on the left channel and this one on the right"
    p.add_argument("--second", type=Path, metavar="AUDIO2", help=second)
    speakers = "where the two are: LEFT,TOP,RIGHT,BOTTOM of each as fractions of the image (default: left and right half)"
    p.add_argument("--speakers", type=box, nargs=2, metavar="BOX", help=speakers)
    user = "what the person hears, a file as AUDIO, for weights that listen: nods and glances, not a word; on the video's right channel"
    p.add_argument("--user-audio", type=Path, metavar="AUDIO2", help=user)
    crop = "what of IMAGE is shown by weights of one size: face, center, or auto: the face if everface[face] is installed (%(default)s)"
    p.add_argument("--crop", choices=CROPS, default=StreamConfig.crop, help=crop)
    p.add_argument("--paste-back", action="store_true", help="show the whole IMAGE, with the face that was cut out put back into it")
    batch = "render every line of a table, .csv or .jsonl: image, audio, and if wanted out, prompt, seed and size; run again, it goes on"
    p.add_argument("--batch", type=Path, metavar="JOBS", help=batch)
    story = "render one video of several shots, the lines of a table, .csv or .jsonl: image, audio, begin, end, prompt, transition (cut, dissolve)"
    p.add_argument("--story", type=Path, metavar="SHOTS", help=story)
    add_model_flags(p)
    p.add_argument("--prompt", default="", help="a sentence that describes the scene, for models trained with text")
    p.add_argument("--seed", type=int, default=StreamConfig.seed, help="the same seed gives the same video (%(default)s)")
    compat = "official: reproduce upstream's known defects (%(default)s)"
    p.add_argument("--compat", choices=COMPATS, default=StreamConfig.compat, help=compat)
    p.add_argument("--force", action="store_true", help="replace OUT, when the new video is complete and not before")
    consent = "who consented to this use of image and voice, in one line: goes into the signed manifest and the audit log"
    p.add_argument("--consent", default="", metavar="TEXT", help=consent)


def _add_verify(add: Add) -> None:
    does = "tell whether a video is signed, and unchanged since (C2PA)"
    more = (
        "Exit codes: 0 signed and unchanged; 1 changed since it was signed, or its signature is damaged; 2 the file cannot be checked; "
        "3 not signed; 4 signed and unchanged, but by nobody whom --trust accepts. Needs the extra everface[provenance]. What a signature "
        "can show and what it cannot is in SECURITY.md."
    )
    p = add("verify", commands.verify, does, "verify talk.mp4", more)
    p.add_argument("file", type=Path, metavar="FILE", help="an MP4")
    p.add_argument("--trust", type=Path, metavar="PEM", help="root certificates of the signers that you accept")


def _add_bench(add: Add) -> None:
    p = add("bench", commands.bench, "measure the speed of a session on this machine", "bench --threads 2")
    what = "frames per second; latency and cadence live; audio features of a stream against the whole file's; or time by op (%(default)s)"
    p.add_argument("what", choices=("speed", "live", "audio", "ops"), nargs="?", default="speed", help=what)
    add_model_flags(p)
    p.add_argument("--preset", choices=("tiny", "heads-256", "heads-384"), help="instead of weights: random ones of a size that everface train has")
    p.add_argument("--segments", type=count, default=10, metavar="N", help="live: times to speak and pause (%(default)s)")
    minutes = "live: speak and pause for so long instead. Exit code 0 also where a figure misses its bar: this measures, it does not judge"
    p.add_argument("--minutes", type=count, metavar="M", help=minutes)
    p.add_argument("--repeats", type=count, default=5, metavar="N", help="measured runs, after one warm-up (%(default)s)")
    p.add_argument("--seconds", type=count, default=8, metavar="S", help="seconds of audio in each run (%(default)s)")
    as_json = "print one JSON object and nothing else; with a FILE, write it there and print as ever"
    p.add_argument("--json", type=Path, nargs="?", const=True, metavar="FILE", help=as_json)


def _add_profile(add: Add) -> None:
    p = add("profile", None, "measure what parts of a model can be left out", "profile kv")
    verbs = _adder(p.add_subparsers(title="what", metavar="WHAT", required=True), "profile ")
    does, example = "measure how much each attention head needs of the KV cache", "kv face.png speech.wav --weights weights"
    p = verbs("kv", commands.profile_kv, does, example, "Writes kv_profile.json beside the weights, by which other commands keep a share of the keys (docs/beyond.md).")
    p.add_argument("image", type=Path, nargs="?", metavar="IMAGE", help="a portrait to stream (default: a bundled one)")
    p.add_argument("audio", type=Path, nargs="?", metavar="AUDIO", help="speech, of which 8 s are used (default: the bundled one)")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder of a checkpoint (default: the bundled model)")
    add_deployment_flags(p)


def _add_parity(add: Add) -> None:
    p = add("parity", commands.parity, "compare this build with a folder of golden data", "parity tests/golden")
    p.add_argument("dir", type=Path, metavar="DIR", help="folder of .safetensors cases")
    p.add_argument("--case", help="run this case only")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype to compute in (%(default)s)")
    p.add_argument("--json", action="store_true", help="print JSON")


def _add_simulate(add: Add) -> None:
    example = "simulate --devices 5 --step-ms 122 --decode-ms 69"
    does = "forecast frame rate and first-frame latency, from given times or for every configuration from rates measured on an H200"
    p = add("simulate", commands.simulate, does, example)
    p.add_argument("--model", choices=RELEASED, default=RELEASED[0], help="what to forecast (%(default)s)")
    p.add_argument("--paper", action="store_true", help="only compare forecasts of the paper's configurations with its figures")
    p.add_argument("--devices", type=count, metavar="N", help="devices, at most one per role, and in a table the most (default: 5)")
    p.add_argument("--steps", type=count, default=4, metavar="N", help="forwards per block (%(default)s)")
    step = "measured time of a forward (default: a table of forecasts from rates measured on an H200)"
    p.add_argument("--step-ms", type=float, metavar="MS", help=step)
    p.add_argument("--decode-ms", type=float, metavar="MS", help="of decoding a block, with --step-ms (default: 150, from the paper)")
    p.add_argument("--transfer-ms", type=float, default=0.5, metavar="MS", help="transfer between devices (%(default)s)")
    p.add_argument("--jitter", type=float, default=0.0, metavar="CV", help="of all times: deviation / mean (%(default)s)")
    p.add_argument("--sessions", type=count, default=1, metavar="N", help="sessions (%(default)s)")
    p.add_argument("--live", action="store_true", help="audio arrives as it is spoken, not all at once")
    add_fleet_flags(p)


def _add_pull(add: Add) -> None:
    p = add("pull", commands.pull, "download a model's weights; files that are finished are kept if it is interrupted", "pull livetalk-1.3b")
    which = "Live Avatar, 47 GB, or LiveTalk, 18 GB, for non-commercial use only (%(default)s)"
    p.add_argument("model", choices=RELEASED, nargs="?", default=RELEASED[0], help=which)
    where = "folder to download to (default: one of the model's name in the cache, see EVERFACE_CACHE)"
    p.add_argument("--dir", type=Path, metavar="DIR", help=where)
    p.add_argument("--accept-license", action="store_true", help="accept a license that forbids commercial use, instead of being asked")


def _add_convert(add: Add) -> None:
    does = "convert a checkpoint and merge its LoRA now, not at its first use"
    p = add("convert", commands.convert, does, "convert weights/live-avatar")
    p.add_argument("dir", type=Path, metavar="DIR", help="folder of the checkpoint")
    p.add_argument("--lora", type=Path, metavar="FILE", help="the LoRA to merge (default: DIR/liveavatar.safetensors)")


def _add_doctor(add: Add) -> None:
    does = "report what this machine has and lacks, or plan a placement of a released model"
    p = add("doctor", commands.doctor, does, "doctor")
    p.add_argument("--plan", action="store_true", help="forecast a released model on every number of devices; mark the best")
    p.add_argument("--model", choices=RELEASED, help="the model to plan for (live-avatar)")
    p.add_argument("--devices", type=count, metavar="N", help="devices to plan for (default: this machine's)")
    p.add_argument("--memory", type=float, dest="memory_gib", metavar="GIB", help="memory of each device (default: as detected)")
    p.add_argument("--step-ms", type=float, metavar="MS", help="measured time of a forward (265.5, from the paper; of LiveTalk a 24 GB card's as assumed)")
    p.add_argument("--decode-ms", type=float, metavar="MS", help="measured time of decoding a block (150, from the paper; of LiveTalk as above)")
    p.add_argument("--sampler", choices=SAMPLERS, help=f"four forwards per block, or three ({StreamConfig.sampler})")
    p.add_argument("--dtype", choices=("bfloat16", "fp8", "fp8-attention"), help="dtype of the weights (bfloat16)")
    p.add_argument("--sessions", type=count, metavar="N", help="concurrent sessions (1)")
    p.add_argument("--size", type=size, metavar="WxH", help="size of the video (704x384, of LiveTalk 512x512)")


def _add_engine(add: Add) -> None:
    does = "serve live sessions to programs in C, C++ and other languages, through libeverface"
    more = f"SIGTERM: no new sessions, what was pushed is shown, then it ends. {EXIT_CODES}"
    p = add("engine", commands.engine, does, "engine --socket /run/user/1000/everface.sock", more)
    p.add_argument("--socket", type=Path, metavar="PATH", help="the Unix socket to listen at; only this user can connect")
    p.add_argument("--fd", type=int, metavar="N", help="serve the program at the other end of socket N alone, as libeverface does")
    p.add_argument("--sessions", type=count, default=Deployment.sessions, metavar="N", help="most sessions at once (%(default)s)")
    p.add_argument("--drain", type=count, default=20, metavar="S", help="longest time for open sessions after SIGTERM (%(default)s)")
    add_model_flags(p)


def _add_join(add: Add) -> None:
    more = "Runs until it is interrupted: when the pipeline ends, it waits for the next one. Both hosts need the same everface and weights (docs/operate.md)."
    p = add("join", commands.join, "lend this host's devices to a pipeline of another host", "join 10.0.0.1:29500 --devices 2", more)
    p.add_argument("address", type=address, metavar="HOST:PORT", help="where the pipeline of the other host listens")
    p.add_argument("--devices", type=count, default=1, metavar="N", help="GPUs to lend, or processes without one (%(default)s)")


def _add_config(add: Add) -> None:
    does = "print what a compiler needs to build with libeverface"
    p = add("config", commands.config, does, "config --cflags --libs", "Without an option, it prints them all.")
    p.add_argument("--cflags", action="store_true", help="flags for the compiler")
    p.add_argument("--libs", action="store_true", help="flags for the linker")
    p.add_argument("--cmake-dir", action="store_true", help="what to set everface_DIR to")
