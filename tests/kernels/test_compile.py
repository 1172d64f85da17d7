"""Every kernel and every tile in the tables compiles without a GPU, and stays within budget.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

HERE = Path(__file__).parent
BUDGET = json.loads((HERE / "budget.json").read_text())
LIMIT = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes; tiles of sm_80 also serve GPUs of 86, 89 and 120


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of one process that compiles everything, with the interpreter off."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = env.get("TRITON_CACHE_DIR") or str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run([sys.executable, "-m", "tests.kernels.compile"], cwd=HERE.parents[1], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def over(key: str, cost: dict[str, Any], allowed: dict[str, Any] | None, exact: bool, complete: bool = True) -> list[str]:
    """Faults of one build. Not `exact`: another Triton than the budget's allocates differently, and only the GPU's limits apply.
    Not `complete`: the same for builds that the budget lacks; `python -m tests.kernels.compile --write` completes it."""
    if "error" in cost or (allowed is None and complete):
        return [f"{key}: {cost.get('error') or 'not in budget.json: python -m tests.kernels.compile --write'}"]
    arch = int(key.rsplit("_", 1)[1])
    wrong = [f"{key}: {cost['shared']} bytes of shared memory, the GPU has {LIMIT[arch]}"] * (cost["shared"] > LIMIT[arch])
    wrong += [f"{key}: spills {cost['stack']} bytes"] * (cost["must_not_spill"] and cost["stack"] > 0)
    wrong += [f"{key}: no wgmma"] * (cost["needs_wgmma"] and arch == 90 and cost["wgmma"] == 0)
    wrong += [f"{key}: its softmax overlaps no GEMM"] * (cost.get("overlap") == 0)
    if exact and allowed is not None:
        wrong += [f"{key}: {cost[n]} {n}, {allowed[n]} allowed" for n in ("regs", "stack", "shared") if cost[n] > allowed[n]]
    return wrong


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_build_is_within_the_budget(made: dict[str, Any]) -> None:
    same = made["triton"] == BUDGET["triton"]
    compile_specs, budget = made["builds"], BUDGET["builds"]
    assert sorted(budget.keys() - compile_specs.keys()) == [], "in budget.json, but no kernel asks for it"
    assert [w for key, cost in compile_specs.items() for w in over(key, cost, budget.get(key), same, BUDGET["complete"])] == []


def test_a_build_over_its_budget_is_seen() -> None:
    good = {"regs": 100, "stack": 0, "shared": 1024, "wgmma": 4, "warps": 4, "must_not_spill": True, "needs_wgmma": True}
    assert over("x sm_90", good, good, True) == []
    for worse in ({"regs": 101}, {"stack": 8}, {"shared": 1025}, {"shared": 228 * 1024}, {"wgmma": 0}, {"overlap": 0}, {"error": "no"}):
        assert over("x sm_90", good | worse, good, True) != [], worse
    assert over("x sm_90", good | {"regs": 101}, good, False) == []
    assert over("x sm_90", good, None, True) != []
    assert over("x sm_90", good, None, True, complete=False) == []
    assert over("x sm_90", good | {"stack": 8}, None, True, complete=False) != []


@pytest.mark.parametrize(
    ("ptx", "good"),
    [
        ("ld.param.u64 %rd1; griddepcontrol.wait; ld.global.b32", True),
        ("ld.global.b32; griddepcontrol.wait; st.global.b32", False),
        ("@%p1 st.global.b32; griddepcontrol.wait;", False),
        ("ld.param.u64 %rd1; ld.global.b32", False),
    ],
)
def test_an_access_before_the_wait_is_seen(ptx: str, good: bool) -> None:
    from tests.kernels.compile import waits_first

    assert waits_first(ptx) is good


def test_row_ops_are_launched_early_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from everface.kernels import launch

    monkeypatch.setattr(launch, "tile_family", lambda device: 80 if device.index == 0 else 90)
    old, new = torch.device("cuda:0"), torch.device("cuda:1")
    assert launch.programmatic_launch(new) == {"PDL": False}
    monkeypatch.setattr(launch, "PROGRAMMATIC_LAUNCH", True)
    assert launch.programmatic_launch(new) == {"PDL": True, "launch_pdl": True}
    assert launch.programmatic_launch(old) == launch.programmatic_launch(torch.device("cpu")) == {"PDL": False}
