"""The parity command: passes on this build, finds one wrong number, and refuses unusable input in one sentence."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from everface.cli import main
from everface.parity.golden import Golden
from everface.parity.live_talk import LIVE_TALK
from everface.parity.report import Check, distance
from everface.parity.suite import CASES

Lines = list[dict]
NOT_HERE = {  # cases for which this repository has no golden data, to stay small: variants of others
    "dit_stream_seq_online", "dit_stream_seq_rel30", "dit_stream_seq_fp16rope", "lt_dit_block",
}  # fmt: skip


def copy(golden: Path, folder: Path, stem: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """One golden file, changed, with its configuration."""
    source = golden / f"{stem}.safetensors"
    tensors = load_file(source)
    change(tensors)
    with safe_open(source, "pt") as file:
        save_file(tensors, folder / source.name, file.metadata())


def parity(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict]:
    code = main(["parity", *map(str, args), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_this_build_passes_every_case(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = parity(capsys, golden)
    lines: Lines = report["lines"]
    assert code == 0, [line for line in lines if line["status"] == "MISS"]
    assert report["ok"] > 150 and report["MISS"] == 0
    assert report["ok"] == sum(line["error"] <= line["tolerance"] for line in lines if line["error"] is not None)
    compared = {line["case"] for line in lines if line["status"] == "ok"}
    own = {case for case in CASES if not case.startswith("lt_")} - NOT_HERE
    assert {case for case in own if any(stem.startswith(case) for stem in compared)} == own
    assert {line["tensor"] for line in lines if line["status"] == "unused"} <= {"cond_k"}  # one size has no rotated keys
    videos = {(line["case"], line["tensor"]) for line in lines if line["tensor"].startswith("video") and line["status"] == "ok"}
    assert {case for case, _ in videos} == {"dit_stream_seq", "dit_stream_tpp"}


def test_this_build_passes_every_case_of_livetalk(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = parity(capsys, golden / "livetalk")
    assert code == 0, [line for line in report["lines"] if line["status"] == "MISS"]
    assert report["ok"] > 70 and report["MISS"] == report["absent"] == report["unused"] == 0
    compared = {line["case"] for line in report["lines"]}
    assert {case for case in LIVE_TALK if any(stem.startswith(case) for stem in compared)} == set(LIVE_TALK) - NOT_HERE


def test_one_wrong_number_is_named(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bend(tensors: dict[str, torch.Tensor]) -> None:
        tensors["context1"][7, 3] += 1e-3

    copy(golden, tmp_path, "t5", bend)
    assert main(["parity", str(tmp_path)]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    (missed,) = [line for line in lines if "MISS" in line]
    assert missed.startswith("t5 ") and " context1 " in missed and "1.0e-03 of 5.0e-05" in missed
    assert summary == "1 case, 5 tensors compared in float32: 1 miss; 0 absent, 0 unused"


def test_wrong_shape_and_not_a_number_are_misses(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bend(tensors: dict[str, torch.Tensor]) -> None:
        tensors["n2.sigmas"] = torch.zeros(7)
        tensors["n3.sigmas"][0] = math.nan

    copy(golden, tmp_path, "sampler", bend)
    code, report = parity(capsys, tmp_path)
    assert code == 1
    assert [line["tensor"] for line in report["lines"] if line["status"] == "MISS"] == ["n2.sigmas", "n3.sigmas"]


def test_what_a_folder_lacks_is_absent(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(golden, tmp_path, "t5", lambda t: [t.pop(name) for name in ("context0", "bucket.rel_pos")])
    copy(golden, tmp_path, "framepack", lambda t: t)  # without dit_weights
    code, report = parity(capsys, tmp_path)
    absent = {line["tensor"]: line["note"] for line in report["lines"] if line["status"] == "absent"}
    assert code == 0 and absent.keys() == {"context0", "bucket.index", "(the rest)", "(the case)"}
    assert "bucket.rel_pos" in absent["bucket.index"] and "dit_weights" in absent["(the rest)"]
    (tmp_path / "t5.safetensors").unlink()
    assert main(["parity", str(tmp_path)]) == 1  # nothing was compared: not a pass
    assert "nothing in it could be compared" in capsys.readouterr().out


def test_a_case_may_have_any_size_in_its_name(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(golden / "dit_weights.safetensors", tmp_path / "dit_weights_tall.safetensors")
    shutil.copy(golden / "framepack.safetensors", tmp_path / "framepack_tall.safetensors")
    shutil.copy(golden / "preprocess.safetensors", tmp_path / "preprocess.safetensors")
    code, report = parity(capsys, tmp_path)
    assert code == 0 and {line["case"] for line in report["lines"]} == {"framepack_tall", "preprocess"}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("rope_hd128", {"rope_hd128_5x3"}),
        ("audio", {"audio_bucket", "audio_encoder_injector"}),
    ],
)
def test_case_selects(golden: Path, capsys: pytest.CaptureFixture[str], wanted: str, found: set[str]) -> None:
    code, report = parity(capsys, golden, "--case", wanted)
    assert code == 0 and {line["case"] for line in report["lines"]} == found


def test_bfloat16_holds_relative_errors(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = parity(capsys, golden, "--case", "dit_full", "--dtype", "bfloat16")
    compared = [line for line in report["lines"] if line["error"] is not None]
    assert code == 0 and {line["unit"] for line in compared} == {"rms"}
    velocity = next(line["error"] for line in compared if line["tensor"] == "velocity")
    assert 1e-4 < velocity < 0.02  # it was computed in bfloat16 indeed


def test_bad_input_is_one_sentence(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "t5.safetensors").write_bytes((golden / "t5.safetensors").read_bytes()[:1000])
    for args, named in (
        ([tmp_path / "nowhere"], "not a folder"),
        ([tmp_path / "empty"], "no golden case"),
        ([tmp_path / "torn"], "truncated"),
        ([golden, "--case", "ropes"], "dit_full"),
        ([golden, "--case", "vae", "--dtype", "bfloat16"], "transformer only"),
    ):
        assert main(["parity", *map(str, args)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and named in err and err.count("\n") == 1 and err.startswith("everface: ")


def test_units(golden: Path) -> None:
    a = torch.tensor([1.0, -2.0])
    assert distance(a + 0.5, a, "abs") == 0.5
    assert distance(1.1 * a, a, "rms") == pytest.approx(0.1, rel=1e-5)
    near = torch.tensor([1.0, -0.0], dtype=torch.bfloat16), torch.tensor([1.0078125, 0.0], dtype=torch.bfloat16)
    assert distance(*near, "ulp") == 1
    check = Check(Golden(golden / "preprocess.safetensors", "preprocess"), torch.bfloat16)
    check("table", check.file["table"] + 1, 0)
    assert check.lines[0].status == "MISS"  # integers stay exact in bfloat16
