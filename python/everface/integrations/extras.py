"""Adapters say what they need before they import it."""

from __future__ import annotations

from importlib.util import find_spec

from everface.core.errors import Unavailable


def require(module: str, extra: str) -> None:
    """Raises Unavailable, with the command that installs the extra, where `module` is not installed."""
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        found = False
    if not found:
        raise Unavailable(f"everface.integrations.{extra} needs the package {module}, which is missing: pip install 'everface[{extra}]'")
