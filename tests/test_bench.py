"""`make gpu` to the end on a CPU, where packages that a GPU machine may lack cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    """An environment whose interpreters find none of MISSING."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}  # under xdist no bench would be timed
    return {**inherited, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT / "python")])}


def test_the_blocker_blocks(bare: dict[str, str]) -> None:
    assert subprocess.run([sys.executable, "-c", "import msgspec"], env=bare, capture_output=True, check=False).returncode == 1


def test_sessions_and_steps_run_without_them(bare: dict[str, str], tmp_path: Path) -> None:
    words = ["-m", "bench.gpu", "--tiny", "--parts", "peaks,session-official,step,step-fp8-attention", "--soak", "0.5", "--commit", "abc", "--budget", "200"]
    words += ["--out", str(tmp_path / "out"), "--pack", str(tmp_path / "all.tar.gz")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=bare, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    folder = tmp_path / "out" / "cpu"
    summary = json.loads((folder / "summary.json").read_text())
    assert done.returncode == 0, summary
    assert [part["rc"] for part in summary["parts"].values()] == [0, 0, 0, 0]
    (session,) = json.loads((folder / "session-official.json").read_text())["benchmarks"]
    assert session["extra_info"]["fps"] > 0 and session["extra_info"]["blocks"] >= 6 and session["extra_info"]["commit"] == "abc"
    reports = [json.loads((folder / f"{part}.json").read_text()) for part in ("step", "step-fp8-attention")]
    steps = {b["name"]: b["extra_info"] for report in reports for b in report["benchmarks"]}
    assert all(0 < steps[f"test_step[{kind}]"]["error_against_bf16"] < 0.5 for kind in ("step_fp8", "step_fp8_attention"))
    assert 0 < steps["test_error_of_one_layer"]["error_against_float32"] < 0.05
    assert (tmp_path / "all.tar.gz").stat().st_size and not list(folder.glob("*.partial"))


def test_a_spent_budget_is_told(bare: dict[str, str], tmp_path: Path) -> None:
    words = ["-m", "bench.gpu", "--tiny", "--budget", "0", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "step: left out" in done.stdout
