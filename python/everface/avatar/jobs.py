"""The table of a batch: a CSV file with a header, or JSON objects line by line. Every error names the line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from everface.core.config import StreamConfig
from everface.core.errors import BadInput

NEEDED, OPTIONAL = ("image", "audio"), ("out", "prompt", "seed", "size")
MOST_BYTES = 64 << 20  # of the table
MOST_FIELD_BYTES = 1 << 16


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
    for line, raw in _rows(path):
        where = f"line {line} of {path}"
        job = _job(where, line, raw, path.parent, stream)
        if (other := lines.setdefault(job.out.casefold(), line)) != line:
            raise BadInput(f"{where} would write {job.out}, as line {other} does: give each a name of its own in the column out")
        jobs.append(job)
    if not jobs:
        raise BadInput(f"{path} has no jobs: add a line with an image and an audio file")
    return jobs


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise BadInput(f"{path} is no table of jobs that can be read: name a .csv or .jsonl file")
    try:
        if not path.is_file():
            raise BadInput(f"there is no table of jobs at {path}: check the path")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise BadInput(f"{path} has {size >> 20} MB, more than {MOST_BYTES >> 20} MB: divide it")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    yield from _csv_rows(path, text) if kind == ".csv" else _json_rows(path, text)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_names(f"line {reader.line_num} of {path}", header, "column")
                continue
            if len(cells) > len(header):
                raise BadInput(f"line {reader.line_num} of {path} has {len(cells)} cells for {len(header)} columns: quote cells with commas")
            yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells) if cell.strip()}
    except csv.Error as error:
        raise BadInput(f"line {reader.line_num} of {path} is not CSV ({error}): correct it") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise BadInput(f"{where} is not JSON ({reason}): write one object a line") from None
        if not isinstance(raw, dict):
            raise BadInput(f'{where} is no object: write {{"image": "face.png", "audio": "speech.wav"}}')
        _check_names(where, list(raw), "key", needed=False)
        yield number, {name: value for name, value in raw.items() if value is not None}


def _check_names(where: str, names: list[str], what: str, needed: bool = True) -> None:
    for name in names:
        if name not in NEEDED + OPTIONAL:
            raise BadInput(f"{where} has an unknown {what} {name!r}: use {', '.join(NEEDED + OPTIONAL)}")
        if names.count(name) > 1:
            raise BadInput(f"{where} has the {what} {name!r} twice: leave one out")
    for name in NEEDED if needed else ():
        if name not in names:
            raise BadInput(f"{where} has no {what} {name!r}: begin the table with image,audio")


def _job(where: str, line: int, raw: dict[str, Any], folder: Path, stream: StreamConfig) -> Job:
    for name, value in raw.items():
        if name == "seed" and not isinstance(value, bool) and re.fullmatch(r"\d{1,19}", str(value)):
            continue
        if name == "seed" or not isinstance(value, str) or len(value) > MOST_FIELD_BYTES or "\0" in value:
            fix = "a whole number from 0 on" if name == "seed" else "text"
            raise BadInput(f"{where} has {value!r:.60} as {name}: write {fix}")
    for name in NEEDED:
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
