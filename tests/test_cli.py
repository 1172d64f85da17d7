"""The command line: help, flags, exit codes, one-line errors, the doctor. No model is loaded here."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from everface import __version__, cli
from everface.cli import commands
from everface.core.errors import BadInput, BadWeights
from everface.doctor import machine

MODEL, DEPLOYMENT = "weights lora size sampler dtype attention kv-keep text-weights image-encoder", "placement threads"
METRICS = "syncnet dino qalign trust-qalign"
# Adding a flag is a decision: it has an owner and a place here.
FLAGS = {
    "demo": f"out {DEPLOYMENT}",
    "render": f"out pcm second speakers user-audio crop paste-back batch story {MODEL} {DEPLOYMENT} prompt seed compat force consent",
    "verify": "trust",
    "serve": f"host port open token max-sessions max-jobs max-upload-mb max-audio-s idle-s lifetime-s push-to {MODEL} {DEPLOYMENT}",
    "soak": f"hours fast server out {MODEL} {DEPLOYMENT}",
    "bench": f"{MODEL} {DEPLOYMENT} preset segments minutes repeats seconds json",
    "profile kv": f"weights {DEPLOYMENT}",
    "parity": "case dtype json",
    "simulate": "model paper devices steps step-ms decode-ms transfer-ms jitter sessions live "
    "fleet hours session-s day idle-share warm cold-start-s patience-s gpus price",
    "pull": "dir accept-license",
    "convert": "lora",
    "join": "devices",
    "config": "cflags libs cmake-dir",
    "engine": f"socket fd sessions drain {MODEL} {DEPLOYMENT}",
    "doctor": "plan model devices memory step-ms decode-ms sampler dtype sessions size",
    "genbench build": "from out limit",
    "genbench run": f"set system out limit seconds seed {MODEL} {DEPLOYMENT} {METRICS}",
    "genbench profiles": f"set out limit seconds seed {MODEL} {DEPLOYMENT}",
    "genbench report": METRICS,
    "genbench diff": "",
}
COMMANDS = (*(c for c in FLAGS if " " not in c), "train", "genbench", "profile")


def _help(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*argv, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys)
    assert [c for c in COMMANDS if f"\n    {c}  " not in text] == []


@pytest.mark.parametrize(
    "command", [*sorted({*COMMANDS, *FLAGS}), *(f"train {w}" for w in ("vae", "data", "teacher", "stage1", "stage2", "evaluate", "ablate"))]
)
def test_every_command_explains_itself_with_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(_help(capsys, *command.split()).split())
    example = text.partition("example: everface ")[2].split()
    assert " ".join(example).startswith(command)
    cli.build_parser().parse_args(example)


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_are_frozen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = _help(capsys, *command.split()).replace(",", " ").replace("[", " ").replace("]", " ").split()
    assert {w for w in words if w.startswith("--")} == {f"--{name}" for name in ["help", *FLAGS[command].split()]}


def test_a_phase_of_training_is_planned_before_it_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "stage2", "--config", "wan-s2v-14b", "--dry-run", "--set", "history=clean"]) == 0
    assert "128 H100" in capsys.readouterr().out
    assert cli.main(["train", "stage2", "--dry-run", "--set", "history=dirty"]) == 2
    assert cli.main(["train", "stage2", "runs/a"]) == 2
    assert "--student" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, everface.cli; everface.cli.build_parser(); print([m for m in ('torch', 'numpy', 'av') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_module_runs_and_prints_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "everface", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"everface {__version__}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["sing"], "sing"),
        (["render", "a.png", "b.wav"], "--out"),
        (["render", "a.png", "b.wav", "-o", "c.mp4", "--quick"], "--quick"),
        (["render", "a.png", "b.wav", "-o", "c.mp4", "--see", "3"], "--see"),  # no abbreviations
        (["render", "a.png", "b.wav", "-o", "c.mp4", "--size", "big"], "WIDTHxHEIGHT"),
        (["render", "a.png", "b.wav", "-o", "c.mp4", "--size", "64x64x64"], "WIDTHxHEIGHT"),
        (["render", "a.png", "b.wav", "-o", "c.mp4", "--threads", "0"], "above zero"),
        (["render", "a.png", "b.wav", "-o", "c.mp4", "--placement", "6"], "6"),
        (["render", "a.png", "b.wav", "-o", "c.mp4", "--placement", "2+2"], "2+3@HOST:PORT"),
        (["join", "29500"], "HOST:PORT"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == "" and err.startswith("everface: ") and err.count("\n") == 1 and message in err


RENDER = ["render", "face.png", "speech.wav", "-o"]


@pytest.mark.parametrize("error", [BadInput("face.png is missing:\n  pass an image"), BadWeights("x is truncated")])
def test_an_error_the_user_can_fix_is_one_line_and_exit_2(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(commands, "render", refuse)
    assert cli.main([*RENDER, "out.mp4"]) == 2
    assert capsys.readouterr().err == f"everface: {' '.join(str(error).split())}\n"


def test_a_wrong_setting_is_refused_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RENDER, "out.mp4", "--seed", "-1"]) == 2
    assert "seed -1" in capsys.readouterr().err
    assert cli.main([*RENDER, "out.mp4", "--size", "700x384"]) == 2
    assert "nearest is 704x384" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [("--paste-back",), ("--user-audio", "question.wav"), ("--second", "other.wav")])
def test_a_table_refuses_what_it_would_ignore(flag: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for table in ("--batch", "--story"):
        assert cli.main(["render", table, "jobs.csv", "-o", "out", *flag]) == 2
        assert "everface render" in capsys.readouterr().err or table == "--batch"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(commands, "render", fail)
    with pytest.raises(KeyError):
        cli.main([*RENDER, "out.mp4"])


@pytest.mark.parametrize("notes", [[], ["the first 1.0 s are in talk.mp4 and can be played"]])
def test_an_interruption_says_what_is_left(notes: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(args: argparse.Namespace) -> None:
        interrupt = KeyboardInterrupt()
        for note in notes:
            interrupt.add_note(note)
        raise interrupt

    monkeypatch.setattr(commands, "render", stop)
    assert cli.main([*RENDER, "talk.mp4"]) == 130
    assert capsys.readouterr().err == f"everface: {'; '.join(['interrupted', *notes])}\n"


def test_the_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["render"], ["demo"]):
        text = " ".join(_help(capsys, *command).split())
        assert all(f"{code} " in text.partition("Exit codes: ")[2] for code in (0, 1, 2, 130, 143, 129)), command
    assert "replace OUT, when the new video is complete" in " ".join(_help(capsys, "render").split())


def test_size_is_width_by_height_outside_and_height_by_width_inside() -> None:
    for text, size in {"704x384": (384, 704), "128*64": (64, 128)}.items():
        assert cli.build_parser().parse_args([*RENDER, "o.mp4", "--size", text]).size == size


def test_the_doctor_lists_what_it_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["everface"].startswith(__version__)
    assert {"python", "cpu", "torch", "triton", "cache"} <= set(lines)
    assert lines["verdict"] == "everface can run here"


def test_the_doctor_reports_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("EVERFACE_CACHE", str(blocked / "cache"))
    monkeypatch.setattr(machine, "required", lambda: ["torch", "a-package-nobody-has"])
    assert cli.main(["doctor"]) == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert "missing a-package-nobody-has" in verdict and "cache cannot be written" in verdict


def test_the_doctor_reads_cpu_features(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu avx2 sse4_2 avx512f\n")
    assert machine.cpu_features(info) == ["avx2", "avx512f"]
    assert machine.cpu_features(tmp_path / "none") == []
