"""What a metric is: named measures of one window, or the reason why there are none."""

from __future__ import annotations

from typing import Protocol

from everface.genbench.windows import ClipWindow

Measures = dict[str, float]


class NotAvailable(Exception):
    """A metric cannot be computed; the text says why and how to get it. It never stands for a number."""


class Metric(Protocol):
    """A metric with its weights loaded."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its measures."""
        ...

    def measure(self, window: ClipWindow) -> Measures:
        """The measures of a window. Raises NotAvailable."""
        ...
