"""The audit log: a line for every video, on the logger `everface.audit` at level info. No faces, no audio, no file contents."""

from __future__ import annotations

import json

from everface.core.log import log

audit = log.getChild("audit")


def log_video(out: str, frames: int, seed: int, signed: bool, consent: str) -> None:
    """A video was made. Names and consent are written as JSON, so that no text of a request can look like another line."""
    entry = {"video": out, "frames": frames, "seed": seed, "signed": signed, "consent": consent}
    audit.info("made %s", json.dumps(entry))
