"""`make check` sees every source file, once and under one name: an error planted in each of them must be reported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.test_house import ROOT, walk

PLANTED = """import os
planted: int = "no number"
def unannotated(value): return value
"""
MADE = "class Made: ...\n"
MAKER = "from .planted_class import Made\ndef make() -> Made: return Made()\n"
# An error only if the class that the runtime sees is another one than that which the rest of the project sees.
USER = """from everface.runtime.planted_class import Made
from everface.runtime.planted_maker import make
made: Made = make()
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A copy of the tree in which every source is PLANTED, and these sources."""
    root, sources = tmp_path_factory.mktemp("planted"), []
    for path in walk(ROOT):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        elif path.suffix == ".py":
            copy.write_text(PLANTED)
            sources.append(copy)
    (root / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for name, text in (("planted_class", MADE), ("planted_maker", MAKER)):
        (root / "python/everface/runtime" / f"{name}.py").write_text(text)
    for folder in ("python/everface/avatar", "tests"):
        (root / folder / "planted_user.py").write_text(USER)
    return root, sources


def check(*command: str, cwd: Path) -> Any:
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout)


def test_pyright_sees_every_source_once(planted: tuple[Path, list[Path]]) -> None:
    pytest.importorskip("pyright")
    root, sources = planted
    found = check("pyright", "--pythonpath", sys.executable, "--outputjson", cwd=root)["generalDiagnostics"]

    def by(rule: str) -> Iterator[Path]:
        return (Path(entry["file"]).resolve() for entry in found if entry.get("rule") == rule)

    assert Counter(by("reportAssignmentType")) == Counter(p.resolve() for p in sources)
    runtime = (root / "python/everface/runtime").resolve()
    assert Counter(by("reportMissingParameterType")) == Counter(p.resolve() for p in sources if runtime in p.resolve().parents)
    assert not [entry for entry in found if "planted_" in entry["file"]]


def test_ruff_sees_every_source_once(planted: tuple[Path, list[Path]]) -> None:
    pytest.importorskip("ruff")
    root, sources = planted
    found = check("ruff", "check", "--no-cache", "--output-format", "json", ".", cwd=root)
    assert Counter(Path(entry["filename"]) for entry in found if entry["code"] == "F401") == Counter(sources)
