"""Imports inside everface.train go down its subpackages, in the order that everface/train/__init__.py states, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from everface import train

FOLDER = Path(train.__file__).parent
MAX_MODULES = 14  # of a folder


def imports() -> dict[str, set[str]]:
    """Module below everface.train -> modules below it that it imports, anywhere in its source."""
    found: dict[str, set[str]] = {}
    modules = {".".join(path.relative_to(FOLDER).with_suffix("").parts): path for path in FOLDER.rglob("*.py")}
    for name, path in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("everface.train"):
                base = (node.module or "").removeprefix("everface.train").lstrip(".")
                for alias in node.names:
                    full = f"{base}.{alias.name}".lstrip(".")
                    found[name].add(full if full in modules else base)
    return found


def test_imports_go_down_in_the_stated_order() -> None:
    rank = {name: i for i, name in enumerate(train.ORDER)}
    edges = [(a, b) for a, names in imports().items() for b in names if a != "__init__"]
    assert {a.partition(".")[0] for a, _ in edges} <= rank.keys()
    apart = [(a, b) for a, b in edges if a.partition(".")[0] != b.partition(".")[0]]
    assert len(apart) > 50
    assert [(a, b) for a, b in apart if rank[b.partition(".")[0]] >= rank[a.partition(".")[0]]] == []


def test_no_circle() -> None:
    assert list(TopologicalSorter(imports()).static_order())


def test_folders_are_small() -> None:
    assert [str(d) for d in [FOLDER, *FOLDER.iterdir()] if d.is_dir() and len(list(d.glob("*.py"))) > MAX_MODULES] == []
