"""The systems under test: everface, a folder of finished videos, or any command."""

from __future__ import annotations

import shlex
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput

FIELDS = ("image", "audio", "out", "id", "prompt", "seconds")


class Clip(msgspec.Struct):
    """One video that a system has to make."""

    id: str
    image: str
    audio: str
    out: str
    prompt: str = ""
    seconds: float = 0.0  # of video to make


def raw_path(video: str | Path) -> Path:
    """Where the bytes of a clip's frames are: uint8 RGB [T, H, W, 3]."""
    return Path(video).with_suffix(".rgb")


class EverfaceJob(msgspec.Struct):
    """What the process of everface is to make, on its standard input."""

    clips: list[Clip]
    stream: dict[str, object]  # of StreamConfig
    deployment: dict[str, object]
    weights: str | None = None
    lora: str | None = None
    raw: bool = False  # also keep each frame's bytes, at raw_path(out)

    def parts(self) -> tuple[Path | None, Path | None, StreamConfig, Deployment]:
        """Weights, LoRA, stream and deployment. JSON has no tuples, so a size comes as a list."""
        stream = {name: tuple(value) if isinstance(value, list) else value for name, value in self.stream.items()}
        weights, lora = (Path(path) if path else None for path in (self.weights, self.lora))
        return weights, lora, StreamConfig(**stream), Deployment(**self.deployment)  # type: ignore[arg-type]  checked where they were made


@dataclass(frozen=True)
class EverfaceSystem:
    """everface with any weights and placement, in one process for all clips. `raw`: it keeps every frame's bytes as well, in OUT with the
    suffix .rgb, so that two runs can be compared without a video encoder in between."""

    stream: Mapping[str, object] = field(default_factory=dict)
    deployment: Mapping[str, object] = field(default_factory=dict)
    weights: Path | None = None
    lora: Path | None = None
    raw: bool = False
    spec = "everface"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "everface.genbench.clips.stream_job"]

    def job(self, clips: list[Clip]) -> EverfaceJob:
        weights, lora = (str(path) if path else None for path in (self.weights, self.lora))
        return EverfaceJob(clips, dict(self.stream), dict(self.deployment), weights, lora, self.raw)

    def settings(self) -> dict[str, object]:
        """What the report records of it."""
        set_deployment = {name: value for name, value in self.deployment.items() if value is not None}
        return {"weights": str(self.weights or "bundled"), "lora": str(self.lora or ""), **self.stream, **set_deployment}


@dataclass(frozen=True)
class FolderSystem:
    """Videos that another system has made: FOLDER/ID.mp4."""

    folder: Path

    @property
    def spec(self) -> str:
        return f"dir:{self.folder}"

    def settings(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class CommandSystem:
    """A command for each clip, in a process of its own. No shell reads it; fields in braces are replaced after it is split into words."""

    template: str

    @property
    def spec(self) -> str:
        return f"cmd:{self.template}"

    def command(self, clip: Clip) -> list[str]:
        words = shlex.split(self.template)
        given = {**msgspec.structs.asdict(clip), "seconds": f"{clip.seconds:g}"}
        return [word.format(**{name: given[name] for name in FIELDS}) for word in words]

    def settings(self) -> dict[str, object]:
        return {}


System = EverfaceSystem | FolderSystem | CommandSystem


def parse_system(spec: str, everface: EverfaceSystem) -> System:
    """`everface`, `dir:PATH` or `cmd:TEMPLATE`. Raises BadInput."""
    kind, _, rest = spec.partition(":")
    if spec == "everface":
        return everface
    if kind == "dir" and rest:
        if not Path(rest).is_dir():
            raise BadInput(f"there is no folder {rest}: name the one with the videos ID.mp4 of the system under test")
        return FolderSystem(Path(rest))
    if kind == "cmd" and rest:
        _check_template(rest)
        return CommandSystem(rest)
    raise BadInput(f"{spec!r} is no system: give everface, dir:PATH of videos, or cmd:TEMPLATE as in 'cmd:talk {{image}} {{audio}} -o {{out}}'")


def _check_template(template: str) -> None:
    try:
        names = [name for word in shlex.split(template) for _, name, _, _ in string.Formatter().parse(word) if name is not None]
    except ValueError as error:
        raise BadInput(f"the command {template!r} cannot be split into words ({error}): close its quotes and braces") from None
    unknown = sorted(set(names) - set(FIELDS))
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise BadInput(f"the command has an unknown field {{{unknown[0]}}}: use {known}, and double other braces")
    if "out" not in names:
        raise BadInput(f"the command {template!r} does not say where the video goes: put {{out}} where its name belongs")
