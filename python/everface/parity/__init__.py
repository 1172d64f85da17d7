"""Floor 5: holds a build to golden data, tensor by tensor."""

from everface.parity.suite import run

__all__ = ["run"]
