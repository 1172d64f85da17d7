"""Tables that people write: a CSV file with a header, or JSON objects line by line. Every error names the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everface.core.errors import BadInput

MOST_BYTES = 64 << 20  # of a table
MOST_FIELD_BYTES = 1 << 16


@dataclass(frozen=True)
class TableFormat:
    """The columns of a table of `what`. `example` is a line of it in JSON."""

    what: str
    needed: tuple[str, ...]  # by a CSV file's header
    optional: tuple[str, ...]
    example: str

    def rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line numbers and what the lines have, without empty cells and null. Raises BadInput."""
        kind = path.suffix.lower()
        if kind not in (".csv", ".jsonl"):
            raise BadInput(f"{path} is no table of {self.what} that can be read: name a .csv or .jsonl file")
        try:
            if not path.is_file():
                raise BadInput(f"there is no table of {self.what} at {path}: check the path")
            if (size := path.stat().st_size) > MOST_BYTES:
                raise BadInput(f"{path} has {size >> 20} MB, more than {MOST_BYTES >> 20} MB: divide it")
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
        except OSError as error:
            raise BadInput(f"{path} cannot be read ({error.strerror}): check its permissions") from None
        yield from self._csv_rows(path, text) if kind == ".csv" else self._json_rows(path, text)

    def _csv_rows(self, path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: list[str] | None = None
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    self._check_names(f"line {reader.line_num} of {path}", header, "column", self.needed)
                    continue
                if len(cells) > len(header):
                    raise BadInput(f"line {reader.line_num} of {path} has {len(cells)} cells for {len(header)} columns: quote cells with commas")
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells) if cell.strip()}
        except csv.Error as error:
            raise BadInput(f"line {reader.line_num} of {path} is not CSV ({error}): correct it") from None

    def _json_rows(self, path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            where = f"line {number} of {path}"
            try:
                raw = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise BadInput(f"{where} is not JSON ({reason}): write one object a line") from None
            if not isinstance(raw, dict):
                raise BadInput(f"{where} is no object: write {self.example}")
            self._check_names(where, list(raw), "key", ())
            yield number, {name: value for name, value in raw.items() if value is not None}

    def _check_names(self, where: str, names: list[str], what: str, needed: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.needed + self.optional:
                raise BadInput(f"{where} has an unknown {what} {name!r}: use {', '.join(self.needed + self.optional)}")
            if names.count(name) > 1:
                raise BadInput(f"{where} has the {what} {name!r} twice: leave one out")
        for name in needed:
            if name not in names:
                raise BadInput(f"{where} has no {what} {name!r}: begin the table with {','.join(needed)}")


def check_text(where: str, name: str, value: object) -> str:
    """Raises BadInput for what is no text of a sensible length."""
    if not isinstance(value, str) or len(value) > MOST_FIELD_BYTES or "\0" in value:
        raise BadInput(f"{where} has {value!r:.60} as {name}: write text")
    return value
