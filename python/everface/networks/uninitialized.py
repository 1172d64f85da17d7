"""Modules without weights, to be filled from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _SkipInit(TorchFunctionMode):
    """Functions of torch.nn.init return their tensor as it is."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def uninitialized() -> Iterator[None]:
    """Parameters of modules that are built inside are on the meta device, and nothing is drawn for them.

    The meta device alone is not enough: torch's random functions and arithmetic on it are decompositions, which import torch._dynamo, and
    that takes as long as importing torch itself. Per thread.
    """
    with torch.device("meta"), _SkipInit():
        yield
