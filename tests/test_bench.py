"""`make gpu` to the end on a CPU, where packages that a GPU machine may lack cannot be imported; and its promises about time and evidence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark.expression import Expression
from bench import gpu, parts, timing, tree
from bench.evidence import Evidence
from bench.rows import read_rows
from bench.step.captured import CFG, make_inputs
from bench.stream.random14b import random_dit

from everface.core.config import ATTENTIONS, FP8_ATTENTIONS
from everface.kernels.launch import Cost

ROOT = Path(__file__).parents[1]
MISSING = ("av", "soxr", "msgspec", "psutil", "transformers", "rich", "ftfy", "diffusers", "PIL", "huggingface_hub")
BLOCKER = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {MISSING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose interpreters find none of MISSING, and no everface but that of pytest's settings."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}  # under xdist no bench would be timed
    return {**inherited, "PYTHONPATH": str(tmp_path / "site")}


def run_bench(env: dict[str, str], out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "bench.gpu", "--tiny", "--out", str(out), *words]
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def figures(path: Path) -> dict[str, Any]:
    """extra_info by the name of the test, without its file."""
    return {name.rpartition("::")[2]: row["extra_info"] for name, row in read_rows(path).items()}


def test_the_blocker_blocks(bare: dict[str, str]) -> None:
    assert subprocess.run([sys.executable, "-c", "import msgspec"], env=bare, capture_output=True, check=False).returncode == 1


def test_the_inputs_of_a_step_are_made() -> None:
    """What every bench of a step begins with, by the sizes of a CPU."""
    given = make_inputs(random_dit(CFG, torch.device("cpu")))
    assert all(part.float().std() > 0.5 for part in given.cache.tensors)


@pytest.mark.long
def test_sessions_and_steps_run_without_them(bare: dict[str, str], tmp_path: Path) -> None:
    """A first run, a second that finds everything there, and what both leave behind."""
    words = ["--parts", "peaks,step,step-gluon-e4m3,launches", "--commit", "abc", "--pack", str(tmp_path / "all.tar.gz")]
    done = run_bench(bare, tmp_path / "out", *words)
    folder = tmp_path / "out" / "cpu"
    summary = json.loads((folder / "summary.json").read_text())
    assert done.returncode == 0, done.stdout
    assert {name: part["rc"] for name, part in summary["parts"].items()} == dict.fromkeys(["peaks", "step", "step-gluon-e4m3", "launches"], 0)
    assert all(part["seconds"] <= part["limit_s"] and part["commit"] == "abc" for part in summary["parts"].values())

    steps = figures(folder / "step.jsonl") | figures(folder / "step-gluon-e4m3.jsonl")
    assert set(steps) == {"test_step[bf16-auto]", "test_step[fp8-auto]", "test_step[fp8-gluon-e4m3]", "test_error_of_one_layer"}
    assert all(info["commit"] == "abc" for info in steps.values())
    assert all(0 < steps[f"test_step[{row}]"]["error_against_bf16"] < 0.5 for row in ("fp8-auto", "fp8-gluon-e4m3"))
    best = steps["test_step[fp8-gluon-e4m3]"]
    assert (best["dtype"], best["attention"], best["attention_selected"]) == ("fp8-attention", "gluon-e4m3", "reference")
    assert 0 < steps["test_error_of_one_layer"]["error_against_float32"] < 0.05
    assert figures(folder / "launches.jsonl")["test_launches[fp8-auto]"]["launches_predicted"] == steps["test_step[fp8-auto]"]["launches_predicted"]

    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        held = {Path(name).name for name in archive.getnames()}
    assert held == {"cpu", "summary.json", *(f"{name}.{kind}" for name in summary["parts"] for kind in ("jsonl", "log", "xml"))}
    assert not list(folder.glob("*.partial")) and not [p for p in folder.iterdir() if str(ROOT).encode() in p.read_bytes()]

    before = (folder / "step.jsonl").read_bytes()
    again = run_bench(bare, tmp_path / "out", *words)
    assert again.returncode == 0 and "step: there already, of commit abc\n" in again.stdout and "test_step[fp8-auto]" in again.stdout
    assert (folder / "step.jsonl").read_bytes() == before


@pytest.mark.long
def test_a_soak_outlasts_the_limit_of_a_test(bare: dict[str, str], tmp_path: Path) -> None:
    words = ["--parts", "session", "--attention", "triton-e4m3", "--soak", "3"]
    done = run_bench(bare | {"PYTEST_TIMEOUT": "1"}, tmp_path, *words)
    assert done.returncode == 0, done.stdout
    info = figures(tmp_path / "cpu" / "session-triton-e4m3.jsonl")["test_session[official-fp8-triton-e4m3]"]
    assert info["fps"] > 0 and info["blocks"] >= 6 and info["attention"] == "triton-e4m3"
    assert json.loads((tmp_path / "cpu" / "summary.json").read_text())["parts"]["session-triton-e4m3"]["seconds"] > 3


# ---- evidence of a part that goes wrong ----

SLOW = """
import pathlib, time

def test_quick(benchmark):
    benchmark.pedantic(lambda: None, rounds=2)
    benchmark.extra_info["call_us"] = 7.0

def test_wrong():
    assert 1 == 2, "one is not two"

def test_slow():
    if not pathlib.Path({marker!r}).exists():
        time.sleep(60)
"""


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A part named "slow" that hangs in its last test until a file is there. Returns that file."""
    marker = tmp_path / "quick"
    (tmp_path / "test_slow.py").write_text(SLOW.format(marker=str(marker)))
    words = (str(tmp_path / "test_slow.py"), "-p", "no:xdist")
    monkeypatch.setattr(gpu, "PARTS", {"slow": parts.Part(16.0, words), "after": parts.Part(16.0, words, needs="slow")})
    monkeypatch.setattr(gpu, "chosen_parts", lambda *_: ["slow", "after"])
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    return marker


def main(out: Path, *words: str) -> int:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return gpu.main(["--tiny", "--out", str(out), *words])
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.long
def test_a_part_killed_at_its_limit_keeps_what_it_had(
    part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pack = tmp_path / "out", tmp_path / "pack.tar.gz"
    packed, write = [], Evidence.pack
    monkeypatch.setattr(gpu, "PACK_S", 0.5)
    monkeypatch.setattr(Evidence, "pack", lambda self: (packed.append(self), write(self)))
    assert main(out, "--pack", str(pack)) == 1 and len(packed) > 3  # while it ran, too
    said, folder = capsys.readouterr().out, out / "cpu"
    assert "slow: rc 124" in said and "after: left out: slow did not pass" in said and "0.007 ms" in said
    rows = {name.rpartition("::")[2]: row for name, row in read_rows(folder / "slow.jsonl").items()}
    assert rows["test_quick"]["outcome"] == "passed" and rows["test_quick"]["stats"]["rounds"] == 2
    assert rows["test_wrong"]["outcome"] == "failed" and "one is not two" in rows["test_wrong"]["message"]
    assert "test_quick" in (folder / "slow.xml").read_text() and "test_slow" in (folder / "slow.log").read_text()
    assert json.loads((folder / "summary.json").read_text())["parts"]["slow"]["rc"] == 124
    with tarfile.open(pack) as archive:
        assert "cpu/slow.jsonl" in archive.getnames()

    part.touch()  # now nothing hangs: what passed is not run again, what failed is
    assert main(out) == 1
    lines = [json.loads(line) for line in (folder / "slow.jsonl").read_text().splitlines()]
    assert [row["name"].rpartition("::")[2] for row in lines if row["outcome"] == "passed"] == ["test_quick", "test_slow"]
    assert [row["outcome"] for row in lines if "test_wrong" in row["name"]] == ["failed", "failed"]
    assert main(out, "--again") == 1
    assert len((folder / "slow.jsonl").read_text().splitlines()) == 3


def test_a_killed_process_leaves_the_rows_of_the_benches_that_ended(part: Path, tmp_path: Path) -> None:
    """By SIGKILL, as when the machine's own limit is over: no one can tidy up."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"name": "cut of')
    words = [sys.executable, "-m", "pytest", "-q", "-p", "bench.rows", "--rows", str(rows), str(tmp_path / "test_slow.py")]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while len(read_rows(rows)) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    child.kill()
    child.wait()
    assert [row["outcome"] for row in read_rows(rows).values()] == ["passed", "failed"]


# ---- time ----


@pytest.mark.parametrize("number", parts.ROUNDS)
def test_the_limits_of_a_round_add_up(number: int) -> None:
    assert set(parts.ROUNDS) == {1, 2, 3} and parts.ROUND_S == 9 * 60
    limits_s = [parts.PARTS[name].limit(parts.SOAK_S) for name in parts.ROUNDS[number]]
    assert parts.START_S + sum(limits_s) <= parts.ROUND_S
    [row] = [line for line in (ROOT / "docs" / "tuning.md").read_text().splitlines() if line.startswith(f"| {number} | ")]
    assert [float(n) for n in re.findall(r" (\d{2,3})[, ]", row)] == [*limits_s, sum(limits_s)]


def test_rounds_have_every_kind_of_part_once() -> None:
    names = [name for number in parts.ROUNDS for name in parts.ROUNDS[number]]
    assert len(set(names)) == len(names)
    assert names[:6] == ["peaks", "linear", "attention", "kernel-tests", "step", "session"] == parts.chosen_parts(None, 1, None)
    assert parts.chosen_parts(None, None, None) == names
    for name in names:  # what a part needs comes before it
        assert not parts.PARTS[name].needs or names.index(parts.PARTS[name].needs) < names.index(name)


def test_only_a_session_soaks() -> None:
    assert {name for name, part in parts.PARTS.items() if part.soaks} == {n for n in parts.PARTS if n.startswith(("session", "skip-null"))}
    assert parts.PARTS["session"].limit(300.0) == parts.PARTS["session"].limit_s + 300.0 - parts.SOAK_S
    assert parts.PARTS["step"].limit(300.0) == parts.PARTS["step"].limit_s


def test_a_spent_budget_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "--budget", "0") == 0
    assert "step: left out: it may take 95 s, and 0 of the budget are left" in capsys.readouterr().out


def test_attention_names_steps_and_sessions() -> None:
    assert parts.chosen_parts(None, None, "cudnn,gluon-e4m3") == [
        "gluon-tests", "step-cudnn", "session-cudnn", "step-gluon-e4m3", "session-gluon-e4m3",
    ]  # fmt: skip
    assert parts.chosen_parts("skip-null", None, "auto,triton") == ["skip-null", "skip-null-triton"]
    for wrong, message in (((None, None, "fast"), "no such attention: fast"), (("speed", None, None), "no such part"), ((None, 1, "auto"), "a round has")):
        with pytest.raises(ValueError, match=message):
            parts.chosen_parts(*wrong)
    assert set(parts.ATTENTIONS) == {*ATTENTIONS, *(f"{name}-e4m3" for name in FP8_ATTENTIONS[1:])}


def test_every_part_selects_something() -> None:
    """By the names that a run would collect."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "bench", "--attention", ",".join(parts.ATTENTIONS)]
    words += ["-o", "python_files=bench_*.py"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name, part in parts.PARTS.items():
        files = [word for word in part.words if word.endswith(".py") or word.startswith("tests")]
        assert all((ROOT / file).exists() for file in files), name
        if "-k" in part.words:
            chosen = Expression.compile(part.words[part.words.index("-k") + 1])
            for file in (f for f in files if f.startswith("bench")):
                assert [line for line in listed if line.startswith(file) and chosen.evaluate(lambda word, line=line, **_: word in line)], (name, file)
    assert all(file.startswith("tests/") and not file.startswith("tests/kernels/") for file in parts.gpu_test_files())
    kernel_tests = [w for name, part in parts.PARTS.items() for w in part.words if w.startswith("tests/kernels") and part.words.count("--ignore") < 2]
    assert kernel_tests == [parts.GLUON_TESTS]  # the folder in one part, this file in another: no test runs twice


def test_short_ops_are_launched_often_enough() -> None:
    assert timing.calls_of(16.0, timing.CALLS) >= 100 and timing.calls_of(49.9, 2) >= 100
    assert timing.calls_of(800.0, timing.CALLS) == timing.CALLS and timing.calls_of(30e3, 2) == 2


def test_an_op_is_timed_by_the_clock_of_the_gpu(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch of a GPU, with a clock on which a launch takes 16 us: captured again, as it is short, and not timed by the host."""
    monkeypatch.setattr(timing.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing, "capture", lambda calls, launches: launches)
    monkeypatch.setattr(timing, "replay_us", lambda launches: 16.0 * launches)
    monkeypatch.setattr(timing, "peaks", lambda: {"bytes": 4e12, "bf16": 7e14})
    monkeypatch.setattr(timing, "device_name", lambda: "a GPU")
    timing.measure(benchmark, [lambda: None], Cost(0, 32_000_000), shape="1")
    info = benchmark.extra_info
    assert info["calls"] == timing.SHORT_CALLS
    if benchmark.stats is not None:  # --benchmark-disable
        assert (info["call_us"], info["bound"], info["percent_of_peak"]) == (pytest.approx(16.0), "bytes", pytest.approx(50.0))


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if timing.torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit) as end:
        gpu.main(["--out", str(tmp_path)])
    assert end.value.code == 2 and "no GPU is here: use --tiny" in capsys.readouterr().err


def test_nothing_that_is_timed_loads_the_profiler() -> None:
    """CUPTI slows the replays of its process: only bench_launches.py, a part of its own, profiles."""
    profiling = {p.name for p in (ROOT / "bench").rglob("*.py") if re.search(r"torch\.profiler|count_launches", p.read_text())}
    assert profiling == {"bench_launches.py"}
    assert [name for name, part in parts.PARTS.items() if any("bench_launches" in word for word in part.words)] == ["launches"]


def test_the_tree_of_a_gpu_machine_is_small_and_whole() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("git says what is in the tree")
    held = set(tree.gpu_tree())
    assert tree.megabytes(sorted(held)) < tree.MOST_MB / 2  # room for results
    left_out = tree.listed("--cached", "--others", "--exclude-standard") - held
    kinds = {Path(re.sub(r"\.tar\.\d+$", ".tar", path)).suffix for path in left_out}
    assert kinds <= {".tar", ".safetensors", ".wav", ".png", ".jpg", ".mp4", ".webp", ".json", ".txt"}
    assert not {path for path in left_out if not path.startswith(("python/everface/default/", "docs/", "tests/golden/"))}
    sources = [(ROOT / path).read_text() for path in held if path.startswith("tests/kernels/") and path.endswith(".py")]
    golden = {f"tests/golden/{name}" for source in sources for name in re.findall(r'"(\w+\.safetensors)"', source)}
    assert golden and golden <= held
