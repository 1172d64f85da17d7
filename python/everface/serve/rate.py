"""How many requests one address may send: a bucket of tokens for each, filled at a steady rate."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_ADDRESSES = 4096  # that are remembered: the longest unused is forgotten, its bucket is full again
BURST_S = 2.0  # of requests at once


class RequestRate:
    """Used from the event loop only."""

    def __init__(self, per_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._now = per_s, per_s * BURST_S, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def take(self, address: str) -> float:
        """Take a token. Returns the share of the bucket that is left, 0 to 1; -1 where there was none to take."""
        now_s = self._now()
        tokens, at_s = self._buckets.pop(address, (self._most, now_s))
        tokens = min(self._most, tokens + (now_s - at_s) * self._per_s)
        allowed = tokens >= 1
        tokens -= allowed
        self._buckets[address] = (tokens, now_s)
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return tokens / self._most if allowed else -1.0
