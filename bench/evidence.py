"""The folder of one GPU under bench/results: what every part left behind, and one archive of it.

<part>.jsonl has a row a bench or test (bench/rows.py), <part>.log all that the process printed, <part>.xml its JUnit file; summary.json has the
machine and, of every part, exit status, seconds, limit, commit and last lines. Results are committed, and the next run goes on from them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from bench.rows import read_rows

TAIL = 15  # lines of a log in the summary
NOTHING_RAN = 5  # an exit status of pytest
FIGURES = (
    "copy_tb_s", "bf16_tflop_s", "fp8_tflop_s", "fps", "first_frame_warm_ms", "launches", "attention_selected", "error_against_bf16",
    "error_against_float32", "without_ms", "late_blocks",
)  # fmt: skip


class Evidence:
    """The results of one GPU."""

    def __init__(self, folder: Path, root: Path, machine: dict[str, Any], archive: Path | None = None) -> None:
        """`root` is replaced by "." in logs; `archive` is written again after every part, and during long ones."""
        self.folder, self.root, self.archive = folder, root, archive
        folder.mkdir(parents=True, exist_ok=True)
        held = self.file("summary", "json")
        known = json.loads(held.read_text()) if held.exists() else {"parts": {}}
        self.summary: dict[str, Any] = {**known, **machine}

    def file(self, part: str, kind: str) -> Path:
        return self.folder / f"{part}.{kind}"

    def is_done(self, part: str) -> bool:
        """Whether all of it passed, or was skipped, in one run or more."""
        rc = self.summary["parts"].get(part, {}).get("rc")
        return rc == 0 or (rc == NOTHING_RAN and bool(self.passed_names(part)))

    def failed(self, part: str) -> bool:
        """Whether it ran and did not pass."""
        return part in self.summary["parts"] and not self.is_done(part)

    def passed_names(self, part: str) -> list[str]:
        """Benches and tests of a part that need not run again."""
        return [name for name, row in read_rows(self.file(part, "jsonl")).items() if row["outcome"] == "passed"]

    def forget(self, part: str) -> None:
        """Drop what a part left behind: it is measured again."""
        self.summary["parts"].pop(part, None)
        for kind in ("jsonl", "log", "xml"):
            self.file(part, kind).unlink(missing_ok=True)

    def record(self, part: str, **facts: Any) -> None:
        """Note how a part ended, and clean its files of the path of this checkout."""
        for kind in ("jsonl", "log", "xml"):
            if (path := self.file(part, kind)).exists():
                replace(path, path.read_text(errors="replace").replace(str(self.root), "."))
        log = self.file(part, "log")
        tail = log.read_text().splitlines()[-TAIL:] if log.exists() else []
        self.summary["parts"][part] = {**facts, "tail": tail}
        replace(self.file("summary", "json"), json.dumps(self.summary, indent=1))
        self.pack()

    def pack(self) -> None:
        """Write the archive, in place only when it is whole."""
        if self.archive:
            partial = self.archive.with_name(f"{self.archive.name}.partial")
            with tarfile.open(partial, "w:gz") as archive:
                archive.add(self.folder, arcname=self.folder.name)
            partial.replace(self.archive)

    def table(self, part: str) -> list[str]:
        """A line a bench, and how many tests ended how."""
        rows, lines = read_rows(self.file(part, "jsonl")).values(), []
        outcomes = [row["outcome"] for row in rows]
        counts = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
        for row in rows:
            name = row["name"].rpartition("::")[2][:60]
            if row["outcome"] == "passed" and "stats" in row:
                lines.append(f"  {name:60} {_figures(row)}")
            elif row["outcome"] == "failed":
                lines.append(f"  {name:60} failed: {row['message'].splitlines()[-1][:120]}")
        return [f"{part}: {counts or 'nothing'}", *lines]


def _figures(row: dict[str, Any]) -> str:
    """Median, share of the peak, and what else is short."""
    info = row["extra_info"]
    ms = info["call_us"] / 1e3 if "call_us" in info else 1e3 * row["stats"].get("median", 0.0)
    share = f"{info['percent_of_peak']:5.1f} %" if "percent_of_peak" in info else "       "
    more = [f"{k} {info[k]:.4g}" if isinstance(info[k], float) else f"{k} {info[k]}" for k in FIGURES if info.get(k) is not None]
    return f"{ms:10.3f} ms  {share}  {'  '.join(more)}"


def replace(path: Path, text: str) -> None:
    """Write a file that is whole at any moment."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
