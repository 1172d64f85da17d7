"""A pytest plug-in: one line of JSON a bench or test, appended to a file as it ends, so that a process that is killed loses nothing.

    python -m pytest -p bench.rows --rows FILE bench/kernels/bench_linear.py

A row has `name` (pytest's), `outcome`, `seconds`, `message` where there is something to say, and of a bench `stats` and `extra_info` in
pytest-benchmark's form. A name that is there twice was run again: the last row counts.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

MESSAGE = 500  # characters of a failure


def commit() -> str:
    """Of the tree, or "unknown" where there is no git or no repository: --commit fills it in."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each name. A line that was cut off is left out."""
    rows: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["name"]] = row
    return rows


class RowWriter:
    """Appends to one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):  # a process was killed while it wrote
            with path.open("a") as file:
                file.write("\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        row: dict[str, Any] = {"name": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        if message := _message(report):
            row["message"] = message
        with self.path.open("a") as file:
            file.write(json.dumps(row | getattr(report, "bench", {}), default=str) + "\n")


def _message(report: pytest.TestReport) -> str:
    """Why it was skipped, or the end of the failure."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return report.longreprtext[-MESSAGE:] if not report.passed else ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, help="append a line of JSON to this file as each bench or test ends")
    parser.addoption("--except", type=Path, dest="already", help="a file with names, one a line, that are not run")
    parser.addoption("--commit", help="of the tree, where git is missing")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a process of xdist: the one that started it writes
        return
    if config.option.rows:
        config.pluginmanager.register(RowWriter(config.option.rows))
    signal.signal(signal.SIGTERM, _stop)


def _stop(*_: object) -> None:
    """At SIGTERM end in order, with the JUnit file written."""
    pytest.exit("terminated: the limit of this part is over")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    already = set(config.option.already.read_text().splitlines()) if config.option.already else set()
    if left_out := [item for item in items if item.nodeid in already]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in already]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if report.when == "call" and benchmark is not None:
        if item.config.option.commit:
            benchmark.extra_info["commit"] = item.config.option.commit
        stats = benchmark.stats.as_dict(include_data=False)["stats"] if benchmark.stats else {}
        report.bench = {"stats": stats, "extra_info": dict(benchmark.extra_info)}
    return report
