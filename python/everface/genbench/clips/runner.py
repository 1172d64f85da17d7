"""Lets a system make its clips. A clip that is there stays, so an interrupted run goes on where it was; a failure is recorded, not fatal.

DIR/clips/ID.mp4 is a clip, DIR/clips/ID.json its record. A record with an error is tried again by the next run.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from everface.core.errors import BadInput
from everface.genbench.clips.systems import Clip, CommandSystem, EverfaceSystem, FolderSystem, System
from everface.genbench.manifest import BenchmarkSet, Sample
from everface.media.video import probe_video

TIMEOUT_S = 6 * 3600.0  # for one clip of a command


class ClipRecord(msgspec.Struct):
    """What became of one clip."""

    id: str
    video: str = ""  # path; "" if it failed
    error: str = ""
    speed: dict[str, float] = msgspec.field(default_factory=dict)
    windows: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)  # of speed, by the window's first second


Report = Callable[[str, int], None]  # id of the clip in work ("": one is finished), frames so far


def run_system(system: System, benchmark: BenchmarkSet, out: Path, seconds: float | None = None, report: Report | None = None) -> list[ClipRecord]:
    """Make the clips that are missing and return the records of all, in the set's order. `seconds`: of each clip (its voice's duration)."""
    folder = out / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    report = report or (lambda clip, frames: None)
    clips = [_clip(benchmark, sample, folder, seconds) for sample in benchmark.samples]
    records = {clip.id: record for clip in clips if (record := read_record(folder, clip.id)) and not record.error}
    missing = [clip for clip in clips if clip.id not in records]
    for _ in range(len(clips) - len(missing)):
        report("", 0)
    for record in _make(system, missing, report):
        records[record.id] = record
        write_record(folder, record)
        report("", 0)
    return [records[clip.id] for clip in clips]


def read_record(folder: Path, id: str) -> ClipRecord | None:
    """The record of a clip, if there is one and its video is still there."""
    try:
        record = msgspec.json.decode((folder / f"{id}.json").read_bytes(), type=ClipRecord)
    except (OSError, msgspec.DecodeError):
        return None
    return record if record.error or Path(record.video).is_file() else None


def write_record(folder: Path, record: ClipRecord) -> None:
    partial = folder / f"{record.id}.json.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    partial.rename(folder / f"{record.id}.json")


def _clip(benchmark: BenchmarkSet, sample: Sample, folder: Path, seconds: float | None) -> Clip:
    image, voice, out = (str(path.absolute()) for path in (benchmark.image(sample), benchmark.voice(sample), folder / f"{sample.id}.mp4"))
    return Clip(sample.id, image, voice, out, sample.prompt, seconds or sample.duration_s)


def _make(system: System, clips: list[Clip], report: Report) -> Iterator[ClipRecord]:
    if isinstance(system, EverfaceSystem):
        yield from _by_everface(system, clips, report)
    elif isinstance(system, CommandSystem):
        yield from (_by_command(system, clip, report) for clip in clips)
    else:
        yield from (_from_folder(system, clip) for clip in clips)


def _from_folder(system: FolderSystem, clip: Clip) -> ClipRecord:
    path = (system.folder / f"{clip.id}.mp4").absolute()
    return ClipRecord(clip.id, str(path)) if path.is_file() else ClipRecord(clip.id, error=f"there is no {path.name} in {system.folder}")


def _by_command(system: CommandSystem, clip: Clip, report: Report) -> ClipRecord:
    """FPS of a command counts its whole process, with loading."""
    report(clip.id, 0)
    began = time.perf_counter()
    try:
        done = subprocess.run(system.command(clip), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except OSError as error:
        return ClipRecord(clip.id, error=f"the command cannot be started ({error.strerror or error})")
    except subprocess.TimeoutExpired:
        return ClipRecord(clip.id, error=f"the command was stopped after {TIMEOUT_S / 3600:g} h")
    took_s = time.perf_counter() - began
    if done.returncode:
        return ClipRecord(clip.id, error=f"the command ended with {done.returncode}: {_last_line(done.stderr)}")
    if not Path(clip.out).is_file():
        return ClipRecord(clip.id, error="the command ended well, but made no file {out}")
    try:
        frames = probe_video(clip.out).frames
    except BadInput as error:
        return ClipRecord(clip.id, error=f"the command ended well, but {error}")
    return ClipRecord(clip.id, clip.out, speed={"fps_with_loading": frames / took_s})


def _by_everface(system: EverfaceSystem, clips: list[Clip], report: Report) -> Iterator[ClipRecord]:
    """One process for all clips; if it dies, the clip it was at has failed and another process goes on with the next."""
    left = list(clips)
    while left:
        with tempfile.TemporaryFile("w+", errors="replace") as stderr:
            with _started(system, left, stderr) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    try:
                        said = json.loads(line)
                    except ValueError:
                        continue  # a library printed something
                    if "frames" in said:
                        report(said["id"], said["frames"])
                        continue
                    clip = left.pop(0)
                    error = said.get("error", "")
                    yield ClipRecord(clip.id, "" if error else clip.out, error, said.get("speed", {}), said.get("windows", {}))
            if left:
                stderr.seek(0)
                clip = left.pop(0)
                yield ClipRecord(clip.id, error=f"the process ended with {process.returncode}: {_last_line(stderr.read())}")


@contextlib.contextmanager
def _started(system: EverfaceSystem, clips: list[Clip], stderr: IO[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(system.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(system.job(clips)).decode())
            process.stdin.close()
        yield process
        process.wait()
    finally:
        if process.poll() is None:  # this run was interrupted
            process.terminate()
            process.wait()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"
