"""Models by name. A model registers the import path of its class, so that worker processes can import it too."""

from __future__ import annotations

import importlib

from everface.core.errors import BadInput
from everface.runtime.model import Model

_paths: dict[str, str] = {}


def register(name: str, path: str) -> None:
    """Make the model at `path`, "module:object", known as `name`. Registering the same pair again changes nothing."""
    if _paths.setdefault(name, path) != path:
        raise ValueError(f"model {name!r} is registered already, as {_paths[name]}")


def path_of(name: str) -> str:
    """The import path of a registered model. Raises BadInput."""
    if name not in _paths:
        raise BadInput(f"there is no model {name!r}: choose one of {', '.join(sorted(_paths)) or 'none, as none is registered'}")
    return _paths[name]


def load_model(path: str) -> Model:
    """Import "module:object". Raises BadInput."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise BadInput(f"model {path!r} cannot be imported: {error}; register it as 'module:object'") from None
