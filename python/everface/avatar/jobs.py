"""The table of a batch, a video a line. Every error names the line."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from everface.avatar.table import TableFormat, check_text
from everface.core.config import StreamConfig
from everface.core.errors import BadInput

JOBS = TableFormat("jobs", ("image", "audio"), ("out", "prompt", "seed", "size"), '{"image": "face.png", "audio": "speech.wav"}')


@dataclass(frozen=True)
class Job:
    """One line. `out` is the name of the video in the batch's folder."""

    line: int
    image: Path
    audio: Path
    out: str
    stream: StreamConfig


def read_jobs(path: Path, stream: StreamConfig) -> list[Job]:
    """The jobs of a table. Paths are relative to its folder; what a line leaves out is as in `stream`. Raises BadInput."""
    jobs: list[Job] = []
    lines: dict[str, int] = {}
    for line, raw in JOBS.rows(path):
        where = f"line {line} of {path}"
        job = _job(where, line, raw, path.parent, stream)
        if (other := lines.setdefault(job.out.casefold(), line)) != line:
            raise BadInput(f"{where} would write {job.out}, as line {other} does: give each a name of its own in the column out")
        jobs.append(job)
    if not jobs:
        raise BadInput(f"{path} has no jobs: add a line with an image and an audio file")
    return jobs


def _job(where: str, line: int, raw: dict[str, Any], folder: Path, stream: StreamConfig) -> Job:
    for name, value in raw.items():
        if name != "seed":
            check_text(where, name, value)
        elif isinstance(value, bool) or not re.fullmatch(r"\d{1,19}", str(value)):
            raise BadInput(f"{where} has {value!r:.60} as seed: write a whole number from 0 on")
    for name in JOBS.needed:
        if not raw.get(name):
            raise BadInput(f"{where} has no {name}: name a file")
    image, audio = folder / raw["image"], folder / raw["audio"]
    out = raw.get("out") or f"{image.stem}-{audio.stem}.mp4"
    if Path(out).name != out or out.startswith(".") or not out.lower().endswith(".mp4"):
        raise BadInput(f"{where} has {out!r:.80} as out: write the name of a file in the folder of the batch that ends with .mp4")
    try:
        size = _size(raw["size"]) if "size" in raw else stream.size
        own = replace(stream, seed=int(raw.get("seed", stream.seed)), prompt=raw.get("prompt", stream.prompt), size=size)
    except BadInput as error:
        raise BadInput(f"{where} cannot be used: {error}") from None
    return Job(line, image, audio, out, own)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})[x*]([1-9]\d{0,4})", text)
    if not match:
        raise BadInput(f"{text!r:.40} is not a size: write WIDTHxHEIGHT, for example 704x384")
    return int(match[2]), int(match[1])
