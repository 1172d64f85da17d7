"""The log of a run: one JSON object a line in `log.jsonl`, and its curves in `log.png` when the run ends or is stopped."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from everface.train.engine.chart import draw_panels


class RunLog:
    """Values added between two rows appear in the next row as their mean; values set appear as they are. Only rank 0 writes."""

    def __init__(self, run_dir: Path, rank: int = 0) -> None:
        self.path = run_dir / "log.jsonl" if rank == 0 else None
        self.file: IO[str] | None = None
        self.added: dict[str, list[float]] = defaultdict(list)
        self.latest: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.file = open(self.path, "a", buffering=1) if self.path else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.file is not None:
            self.file.close()
        if self.path is not None:
            draw_log(self.path)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.added[name].append(value)

    def set(self, **values: float) -> None:
        self.latest |= values

    def write(self, row: dict[str, float]) -> None:
        """One line: the row, the values set, and the mean of those added since the last line."""
        means = {name: round(sum(values) / len(values), 6) for name, values in self.added.items()}
        if self.file is not None:
            self.file.write(json.dumps(row | self.latest | means) + "\n")
        self.added.clear()
        self.latest.clear()


def draw_log(log: Path) -> Path | None:
    """Curves over steps, one panel each, as log.png beside the log. Returns None where there are none to draw."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in ("step", "seconds", "blocks")]
    if not names:
        return None
    return draw_panels(log.with_suffix(".png"), {n: [(row["step"], row[n]) for row in rows if n in row] for n in names}, "step")
