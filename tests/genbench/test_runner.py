"""Systems make clips; failures are recorded, and an interrupted run goes on."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.genbench.conftest import Draw
from tests.genbench.test_windows import write_video

from everface.core.config import Deployment
from everface.core.errors import BadInput
from everface.genbench.clips.runner import read_record, run_system
from everface.genbench.clips.systems import CommandSystem, EverfaceSystem, FolderSystem, parse_system
from everface.genbench.manifest import BenchmarkSet
from everface.media.video import probe_video

FAILS_ONCE = """import shutil, sys
with open({log!r}, "a") as log:
    log.write(sys.argv[2] + "\\n")
if open({log!r}).read().split()[-2:] == ["s-0", "s-1"]:
    sys.exit("no voice today")
shutil.copy({video!r}, sys.argv[1])
"""
INLINE = asdict(Deployment(threads=1))


def everface(weights: Path) -> EverfaceSystem:
    return EverfaceSystem({"seed": 1}, INLINE, weights)


def test_everface_makes_clips_with_figures(small_set: BenchmarkSet, small_model: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    records = run_system(everface(small_model), small_set, tmp_path / "run", 1.5, lambda clip, frames: seen.append((clip, frames)))
    assert [record.error for record in records] == ["", ""]
    assert [probe_video(record.video).frames for record in records] == [38, 38]  # 1.5 s of voices of 5 s, and what is left of the last frame
    assert probe_video(records[0].video).audio_duration_s == pytest.approx(38 / 25, abs=0.03)
    first, second = (record.speed for record in records)
    assert first["fps"] > 0 and first["cold_first_frame_s"] > first["first_frame_s"] > 0
    assert "cold_first_frame_s" not in second and {"block_ms_p50", "block_ms_p99", "deadline_misses", "rss_mb"} <= second.keys()
    assert ("s-0", 12) in seen and seen.count(("", 0)) == 2


def test_voices_are_looped_for_longer_clips(small_set: BenchmarkSet, small_model: Path, tmp_path: Path) -> None:
    small_set.samples = small_set.samples[:1]
    (record,) = run_system(everface(small_model), small_set, tmp_path / "run", 7.0)
    assert probe_video(record.video).frames == 175


def test_a_broken_clip_is_recorded_and_the_next_is_made(small_set: BenchmarkSet, small_model: Path, tmp_path: Path) -> None:
    small_set.image(small_set.samples[0]).write_bytes(b"no image")
    records = run_system(everface(small_model), small_set, tmp_path / "run", 1.0)
    assert "0.png" in records[0].error and not records[1].error


def test_an_interrupted_run_goes_on(small_set: BenchmarkSet, tmp_path: Path, draw: Draw) -> None:
    video = write_video(tmp_path / "talk.mp4", draw)
    log, out = tmp_path / "log", tmp_path / "run"
    script = tmp_path / "talk.py"
    script.write_text(FAILS_ONCE.format(log=str(log), video=str(video)))
    system = CommandSystem(f"{sys.executable} {script} {{out}} {{id}}")
    first = run_system(system, small_set, out)
    assert [record.error for record in first] == ["", "the command ended with 1: no voice today"]
    assert first[0].speed["fps_with_loading"] > 0
    second = run_system(system, small_set, out)
    assert [record.error for record in second] == ["", ""] and second[0] == first[0]
    assert log.read_text().split() == ["s-0", "s-1", "s-1"]  # the first was not made again
    assert read_record(out / "clips", "s-0") == first[0]
    Path(first[0].video).unlink()
    assert read_record(out / "clips", "s-0") is None


def test_a_command_that_makes_nothing_or_is_not_there(small_set: BenchmarkSet, tmp_path: Path) -> None:
    records = run_system(CommandSystem("true {out}"), small_set, tmp_path / "a")
    assert "made no file" in records[0].error
    records = run_system(CommandSystem("cp /dev/null {out}"), small_set, tmp_path / "c")
    assert [record.error.startswith("the command ended well, but ") for record in records] == [True, True]
    records = run_system(CommandSystem("a-program-nobody-has {out}"), small_set, tmp_path / "b")
    assert "cannot be started" in records[0].error


def test_a_process_that_dies_costs_one_clip_each(small_set: BenchmarkSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, json; print('noise'); print(json.dumps({'id': 'x', 'frames': 3}), flush=True); sys.exit('out of memory')"
    monkeypatch.setattr(EverfaceSystem, "command", lambda self: [sys.executable, "-c", script])
    records = run_system(everface(tmp_path), small_set, tmp_path / "run")
    assert [record.error for record in records] == ["the process ended with 1: out of memory"] * 2


def test_a_folder_of_videos(small_set: BenchmarkSet, tmp_path: Path, draw: Draw) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.move(write_video(tmp_path / "a.mp4", draw), videos / "s-1.mp4")
    records = run_system(FolderSystem(videos), small_set, tmp_path / "run")
    assert records[0].error == f"there is no s-0.mp4 in {videos}" and records[1].video == str(videos / "s-1.mp4")
    assert json.loads((tmp_path / "run/clips/s-1.json").read_text())["video"] == records[1].video


def test_commands_are_filled_in_without_a_shell(small_set: BenchmarkSet) -> None:
    system = parse_system("cmd:talk '{image}' --n {{{seconds}}} -o {out}", everface(Path("w")))
    assert isinstance(system, CommandSystem)
    from everface.genbench.clips.systems import Clip

    clip = Clip("a", "a b;rm.png", "v.wav", "o.mp4", seconds=2.0)
    assert system.command(clip) == ["talk", "a b;rm.png", "--n", "{2}", "-o", "o.mp4"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hallo3", "is no system"), ("dir:", "is no system"), ("dir:/nowhere/at/all", "no folder"), ("cmd:talk {image}", "put {out}"),
        ("cmd:talk {out} {face}", "unknown field {face}"), ("cmd:talk '{out}", "quotes"), ("cmd:talk {out} {", "quotes and braces"),
    ],
)  # fmt: skip
def test_a_wrong_system_is_one_sentence(spec: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_system(spec, EverfaceSystem())
