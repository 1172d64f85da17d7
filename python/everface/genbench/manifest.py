"""A set as data: `manifest.jsonl`, one sample a line, and the images and voices that it names.

    {"id": "short-000", "image": "images/short-000.png", "voice": "voices/short-000.wav", "text": "...", "tags": {...}, ...}

Paths are relative to the manifest's folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec

from everface.core.errors import BadInput

MANIFEST = "manifest.jsonl"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
SHOWN_FAULTS = 8  # in one message


class Tags(msgspec.Struct, forbid_unknown_fields=True):
    """What a sample is, in free words; "" is unknown."""

    style: str = ""  # drawn, rendered, photo, animated, anthropomorphic
    view: str = ""  # frontal, profile
    framing: str = ""  # head and shoulders, half body, full body
    language: str = ""  # a code such as en-us
    voice_kind: str = ""  # synthetic, recorded
    license: str = ""
    seen: str = ""  # what the default model's training used of it: nothing, voice


class Sample(msgspec.Struct, forbid_unknown_fields=True):
    """One person and one speech."""

    id: str
    image: str
    voice: str
    duration_s: float
    text: str = ""
    prompt: str = ""  # describes the scene, for models that are trained with text
    tags: Tags = msgspec.field(default_factory=Tags)
    face: tuple[float, float, float, float] | None = None  # left, top, right, bottom of the face as shares of the image
    truth: str = ""  # "drawn": the mouth's true opening follows from the audio by the drawn characters' rule
    sha256: dict[str, str] = msgspec.field(default_factory=dict)  # of "image" and "voice"


class BenchmarkSet(msgspec.Struct):
    """Samples and the folder that their paths are relative to."""

    folder: Path
    samples: list[Sample]

    def image(self, sample: Sample) -> Path:
        return self.folder / sample.image

    def voice(self, sample: Sample) -> Path:
        return self.folder / sample.voice


def write_manifest(folder: Path, samples: list[Sample]) -> Path:
    """Write the manifest, which appears only when it is complete. Returns its path."""
    path, partial = folder / MANIFEST, folder / f"{MANIFEST}.partial"
    partial.write_bytes(b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples))
    return partial.rename(path)


def read_manifest(path: Path, check_files: bool = True) -> BenchmarkSet:
    """Read a manifest, or the one in a folder. Raises BadInput with one sentence for each fault, and its line."""
    path = path / MANIFEST if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"there is no manifest {path}: make a set with `everface genbench build`, or name a folder that has {MANIFEST}")
    samples, faults, lines = [], list[str](), dict[str, int]()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            sample = msgspec.json.decode(line, type=Sample)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
            faults.append(f"line {number} is not a sample ({str(error).rstrip('.')}).")
            continue
        faults += [f"line {number} {fault}." for fault in check_sample(sample, path.parent if check_files else None)]
        if sample.id in lines:
            faults.append(f"line {number} has the id {sample.id!r} of line {lines[sample.id]}.")
        lines.setdefault(sample.id, number)
        samples.append(sample)
    if faults:
        more = f" {len(faults) - SHOWN_FAULTS} more." if len(faults) > SHOWN_FAULTS else ""
        raise BadInput(f"{path} cannot be used: {' '.join(faults[:SHOWN_FAULTS])}{more} Correct these lines")
    if not samples:
        raise BadInput(f"{path} has no samples: add one a line, or make a set with `everface genbench build`")
    return BenchmarkSet(path.parent, samples)


def check_sample(sample: Sample, folder: Path | None = None) -> list[str]:
    """What is wrong with a sample, as predicates; also with its files, if `folder` is given."""
    wrong = []
    if not ID.fullmatch(sample.id):
        wrong.append(f"has the id {sample.id!r}, which is no file name: use letters, digits, '.', '-' and '_'")
    if not 0 < sample.duration_s < 1e6:
        wrong.append(f"has a duration_s of {sample.duration_s:g}: give seconds above 0")
    if sample.truth not in ("", "drawn"):
        wrong.append(f"has the truth {sample.truth!r}: use 'drawn' or ''")
    if sample.face is not None:
        left, top, right, bottom = sample.face
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            wrong.append("has a face that is not left < right and top < bottom within 0..1")
    for kind, name in (("image", sample.image), ("voice", sample.voice)):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            wrong.append(f"has an {kind} {name!r} outside of its folder: use a relative path" .replace("an voice", "a voice"))
        elif folder is not None and not os.path.isfile(folder / name):  # Path.is_file raises for a name that is too long
            wrong.append(f"names the {kind} {name!r}, which is missing")
        elif folder is not None and kind in sample.sha256 and digest(folder / name) != sample.sha256[kind]:
            wrong.append(f"has another sha256 than its {kind} {name!r}: the file was changed")
    return wrong


def digest(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
