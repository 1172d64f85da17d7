"""A run's journal: one JSON object a line in `log.jsonl`, and its curves as `log.png` when the run ends or is stopped."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from everface.train.engine.chart import draw_panels


class Journal:
    """`add` gathers values, `write` writes their means beside a row. Only rank 0 writes."""

    def __init__(self, run_dir: Path, rank: int = 0) -> None:
        self.path = run_dir / "log.jsonl" if rank == 0 else None
        self.file: IO[str] | None = None
        self.held: dict[str, list[float]] = defaultdict(list)

    def __enter__(self) -> Self:
        self.file = open(self.path, "a", buffering=1) if self.path else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.file is not None:
            self.file.close()
        if self.path is not None:
            draw(self.path)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.held[name].append(value)

    def write(self, row: dict[str, float]) -> None:
        """One line: the row, and the mean of what was added since the last one."""
        means = {name: round(sum(values) / len(values), 6) for name, values in self.held.items()}
        self.held.clear()
        if self.file is not None:
            self.file.write(json.dumps(row | means) + "\n")

    def end(self, row: dict[str, float]) -> None:
        """A last line, when something was added since the one before."""
        if self.held:
            self.write(row)


def draw(log: Path) -> Path | None:
    """One panel a curve, over steps, as log.png beside the log. None where there are no lines to draw."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in ("step", "seconds", "blocks")]
    if not names:
        return None
    return draw_panels(log.with_suffix(".png"), {n: [(row["step"], row[n]) for row in rows if n in row] for n in names}, "step")
