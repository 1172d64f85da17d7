"""The figures of `everface bench live`, each beside its bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Column = Literal["p50", "p95", "p99", "most"]


@dataclass(frozen=True)
class Figure:
    """One row. `count`: measurements behind it. `passed`: None where there is no bar; the others too where nothing was measured."""

    name: str
    unit: str
    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    most: float | None
    bar: str
    passed: bool | None


@dataclass(frozen=True)
class LiveReport:
    figures: tuple[Figure, ...]
    minutes: float
    turns: int  # of speech; every second one was interrupted
    frames: int
    machine: str
    load: float  # 1-minute load average before the run: above 0.5, distrust the figures

    @property
    def passed(self) -> bool:
        """Every figure that has a bar was measured and keeps it."""
        return all(figure.passed for figure in self.figures if figure.bar)

    def figure(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)

    def table(self) -> str:
        width = max(len(f"{f.name}, {f.unit}" if f.unit else f.name) for f in self.figures)
        lines = [f"{'':{width}} {'p50':>8} {'p95':>8} {'p99':>8} {'most':>8} {'number':>7}  bar"]
        for f in self.figures:
            name = f"{f.name}, {f.unit}" if f.unit else f.name
            single = f.count == 1
            cells = " ".join(f"{'' if single and column != 'most' else _short(getattr(f, column)):>8}" for column in ("p50", "p95", "p99", "most"))
            verdict = {True: "pass", False: "FAIL", None: "not measured" if f.bar else ""}[f.passed]
            lines.append(f"{name:{width}} {cells} {f.count:7}  {f.bar:<13} {verdict}".rstrip())
        lines.append(f"{self.minutes:.1f} minutes, {self.turns} turns of speech, {self.frames} frames; {self.machine}; load before {self.load:.2f}")
        return "\n".join(lines)


def figure(name: str, unit: str, values: Sequence[float], bar: tuple[Column, float] | None = None) -> Figure:
    """A row of these measurements. `bar`: the column that it holds for, and the most that it may be."""
    columns: dict[Column, float | None] = {"p50": None, "p95": None, "p99": None, "most": None}
    if len(values):
        columns = {name: round(float(np.percentile(values, p)), 3) for name, p in zip(columns, (50, 95, 99, 100), strict=True)}
    if bar is None:
        return Figure(name, unit, len(values), **columns, bar="", passed=None)
    column, limit = bar
    value = columns[column]
    return Figure(name, unit, len(values), **columns, bar=f"{column} <= {limit:g}", passed=None if value is None else value <= limit)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
