"""What a batch has rendered: a line for every event in manifest.jsonl, so that a batch that was cut off goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from everface.core.errors import BadInput, Unavailable
from everface.core.log import log

NAME = "manifest.jsonl"
STARTED, DONE, FAILED = "started", "done", "failed"


class Manifest:
    """The manifest of a folder. A video counts as finished only by a line that was written after it had its name; the last line of a video
    counts. Not thread-safe; two batches in one folder are refused."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._last: dict[str, dict[str, Any]] = {}  # by the name of the video
        self._begun: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115 open as long as the batch
        except OSError as error:
            raise BadInput(f"{folder} cannot be used as the folder of a batch ({error.strerror}): name another one") from None
        _lock(self._file.fileno(), folder)
        self._read()

    def is_done(self, out: str, inputs: dict[str, Any]) -> bool:
        """Whether the video of exactly these inputs is there, whole and unchanged."""
        entry, video = self._last.get(out), self.path.parent / out
        if not entry or entry.get("status") != DONE or entry.get("inputs") != inputs:
            return False
        return video.is_file() and video.stat().st_size == entry.get("bytes")

    def is_ours(self, out: str) -> bool:
        """Whether a video of that name was begun by a batch in this folder, which may so replace it."""
        return out in self._begun

    def add(self, out: str, status: str, **more: Any) -> None:
        """Raises Unavailable if the disk does not take the line."""
        entry = {"out": out, "status": status, **more}
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be written ({error.strerror}): free some space") from None
        self._note(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        self._last[entry["out"]] = entry
        if entry["status"] == STARTED:
            self._begun.add(entry["out"])

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        torn = False
        for number, line in enumerate(self._file, 1):
            try:
                self._note(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                log.warning("line %d of %s is damaged and does not count", number, self.path)
            torn = not line.endswith(b"\n")
        if torn:  # it was cut off in the middle of a line
            self._file.write(b"\n")
            self._file.flush()


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another batch is writing to {folder}: wait for it, or name another folder") from None
    except OSError:  # this file system has no locks
        log.info("%s cannot be locked: run one batch at a time", folder)
