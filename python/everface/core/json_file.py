"""Reads the JSON files that come with weights: bounded, and with every value of the type that it must have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from everface.core.errors import BadWeights

MAX_BYTES = 64 << 20
MAX_COUNT = 2**20  # of anything that a configuration counts
MAX_ENTRIES = 1024  # of a list
MAX_NUMBER = 1e30


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BadWeights, which names the file."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadWeights(f"{path} has {size >> 20} MB, more than {MAX_BYTES >> 20} MB: fetch it again")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except BadWeights:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadWeights(f"{path} cannot be read as JSON ({reason}): fetch it again, or pass the folder of a checkpoint") from None
    return check_object(raw, str(path))


def check_object(raw: Any, what: str) -> dict[str, Any]:
    """`raw` if it is a JSON object. Raises BadWeights."""
    if not isinstance(raw, dict):
        raise BadWeights(f"{what} is {raw!r:.60}, not a JSON object: fetch it again")
    return raw


def read_value(name: str, value: Any, default: Any) -> Any:
    """The value of a configuration's field, a list as a tuple. Raises BadWeights if it is not of the type of `default`.

    Whole numbers are 1 to MAX_COUNT, in a tuple also 0; other numbers are under MAX_NUMBER; a tuple has entries of one type.
    """
    if isinstance(default, tuple) and isinstance(value, list | tuple) and len(value) <= MAX_ENTRIES:
        entry = 0 if type(default[0]) is int else default[0]
        return tuple(read_value(name, v, entry) for v in value)
    if type(default) is int:
        fits = type(value) is int and min(default, 1) <= value <= MAX_COUNT
    elif type(default) is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and -MAX_NUMBER < value < MAX_NUMBER
    else:
        fits = type(value) is type(default)
    if not fits:
        raise BadWeights(f"{name} = {value!r:.60} cannot stand where {default!r:.60} could: use the config.json of these weights")
    return value
