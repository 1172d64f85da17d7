"""A run's journal: one JSON object a line in `log.jsonl`, and its curves as `log.png` where matplotlib is installed (extra `train`)."""

from __future__ import annotations

import json
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self


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
        if self.path is not None and kind is None:
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
    """One panel a curve, over steps. Returns the picture, None without matplotlib or without lines."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in ("step", "seconds", "blocks")]
    if not names or find_spec("matplotlib") is None:
        return None
    import matplotlib  # pyright: ignore[reportMissingImports]  # an extra

    matplotlib.use("agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, panels = pyplot.subplots(len(names), 1, sharex=True, squeeze=False, figsize=(8, 2.2 * len(names)))
    for name, panel in zip(names, panels[:, 0], strict=True):
        seen = [(row["step"], row[name]) for row in rows if name in row]
        panel.plot(*zip(*seen, strict=True), marker="." if len(seen) < 40 else "")
        panel.set_ylabel(name)
    panels[-1, 0].set_xlabel("step")
    figure.tight_layout()
    path = log.with_suffix(".png")
    figure.savefig(path)
    pyplot.close(figure)
    return path
