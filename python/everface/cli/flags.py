"""Flags that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from everface.core.config import ATTENTIONS, DTYPES, SAMPLERS, Deployment, StreamConfig
from everface.core.regions import Box

MISSING: Any = object()  # a path that was not given, since None is a standard stream
LIVE_TALK = "livetalk-1.3b"
RELEASED = ("live-avatar", LIVE_TALK)  # models that can be pulled and planned for
PLACEMENT = re.compile(r"inline|[1-5]|[0-9]\+[1-9]@.+:\d{1,5}")


def size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT in pixels. Returns (height, width), the order of arrays."""
    match = re.fullmatch(r"([1-9]\d{0,4})[x*]([1-9]\d{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give WIDTHxHEIGHT, for example 704x384")
    return int(match[2]), int(match[1])


def placement(text: str) -> str:
    """Check the form of a placement; whether the model has so many roles is seen later."""
    if not PLACEMENT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a placement: give inline, 1 to 5, or, with processes of other hosts, 2+3@HOST:PORT")
    return text


def address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port[:9]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address: give HOST:PORT, for example 10.0.0.1:29500")
    return host.strip("[]"), int(port)


def path_or_standard(text: str) -> Path | None:
    """Parse a path; None for "-", which is stdin or stdout."""
    return None if text == "-" else Path(text)


def box(text: str) -> Box:
    """Parse LEFT,TOP,RIGHT,BOTTOM; whether it is a region that a speaker can have is seen later."""
    try:
        left, top, right, bottom = (float(edge) for edge in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no box: give LEFT,TOP,RIGHT,BOTTOM as fractions of the image, for example 0,0,0.5,1") from None
    return left, top, right, bottom


def pcm(text: str) -> tuple[int, int]:
    """Parse RATE or RATE:CHANNELS."""
    match = re.fullmatch(r"([1-9]\d{0,6})(?::([1-9]\d?))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not RATE or RATE:CHANNELS: give for example 24000, or 48000:2")
    return int(match[1]), int(match[2] or 1)


def count(text: str) -> int:
    """Parse a whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def ask(statement: str) -> bool:
    """Whether the user agrees, at a terminal; False without one."""
    if not sys.stdin or not sys.stdin.isatty() or not sys.stderr.isatty():
        return False
    print(f"{statement}. Accept it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def add_model_flags(p: argparse.ArgumentParser) -> None:
    """Which model, and how it runs."""
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder of a checkpoint (default: the bundled model)")
    p.add_argument("--lora", type=Path, metavar="FILE", help="a LoRA to merge into the checkpoint, .safetensors")
    p.add_argument("--size", type=size, metavar="WxH", help="size of the video (default: from the image's aspect ratio)")
    sampler = "official: four forwards per block; skip-null: three (default: skip-null for serve, soak and bench live, else official)"
    p.add_argument("--sampler", choices=SAMPLERS, help=sampler)
    add_deployment_flags(p)
    dtype = (
        "dtype to compute in; fp8: GEMMs in 8 bits, fp8-attention: attention too (default: bfloat16 on a GPU, and for live video on a CPU that "
        "multiplies it in hardware; otherwise float32)"
    )
    p.add_argument("--dtype", choices=DTYPES, help=dtype)
    attention = "self-attention backend on a GPU, see everface doctor (%(default)s)"
    p.add_argument("--attention", choices=ATTENTIONS, default=Deployment.attention, help=attention)
    keep = "share of the keys that self-attention reads, for example 0.667; below 1 it needs everface profile kv (%(default)g)"
    p.add_argument("--kv-keep", type=float, default=Deployment.kv_keep, metavar="SHARE", help=keep)
    text = "where layers that only a new prompt needs are, 4.2 GB of the 14B model (%(default)s)"
    p.add_argument("--text-weights", choices=("device", "host"), default=Deployment.text_weights, help=text)
    encoder = "where images are encoded; cpu: 3.8 GiB less on the first GPU, and seconds to minutes for every new image (%(default)s)"
    p.add_argument("--image-encoder", choices=("device", "cpu"), default=Deployment.image_encoder, help=encoder)


def add_deployment_flags(p: argparse.ArgumentParser) -> None:
    """Where the model runs."""
    where = "inline, in this process; 1 to 5, in so many worker processes; 2+3@HOST:PORT, in 2 here and 3 on other hosts (%(default)s)"
    p.add_argument("--placement", type=placement, default="inline", metavar="N", help=where)
    threads = "CPU threads per process (default: EVERFACE_THREADS, else torch's; for live video 1 where more are measured to bring nothing)"
    p.add_argument("--threads", type=count, metavar="N", help=threads)


def sampler(args: argparse.Namespace, live: bool = False) -> str:
    """What was asked for. Else, if `live`, three forwards: the fourth changes an image by 0.16 of 255 gray levels, and the latency by a forward."""
    return args.sampler or ("skip-null" if live else StreamConfig.sampler)


def deployment(args: argparse.Namespace, live: bool = False) -> Deployment:
    """What `add_deployment_flags` and, of some commands, `add_model_flags` parsed, and for the rest what suits this machine (`best_deployment`). Raises BadInput."""
    from everface.avatar.this_machine import best_deployment

    named = ("placement", "threads", "dtype", "attention", "kv_keep", "text_weights", "image_encoder")
    given = {name: value for name in named if (value := getattr(args, name, None)) is not None}
    return best_deployment(live, **given)
