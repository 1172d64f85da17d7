"""A live session from an event loop, without a thread for each reader and without losing an event to a cancelled task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from everface.live.audio_input import Samples, as_array
from everface.live.events import LiveEvent
from everface.live.session import LiveSession

POLL_S = 0.004
ROOM_S = 0.02  # between two looks whether a full audio buffer has room again


async def read_event(session: LiveSession, timeout_s: float) -> LiveEvent | None:
    """As `LiveSession.read`: None when nothing came in time, or the session is closed. Raises what ended the session."""
    end_s = time.monotonic() + timeout_s
    while (event := session.read(0.0)) is None and not session.closed and time.monotonic() < end_s:
        await asyncio.sleep(POLL_S)
    return event


async def push_all(
    session: LiveSession, samples: Samples, rate_hz: int, channels: int, took: Callable[[int], None], stopped: Callable[[], bool]
) -> None:
    """Push all samples and wait for room where the session's buffer is full, unless `stopped` says that they are no longer wanted.

    `took` is called with the number of samples that each push accepted, before anything else runs. Raises as `LiveSession.push_audio`.
    """
    rest_SC = as_array(samples, channels)
    while len(rest_SC) and not stopped():
        taken = session.push_audio(rest_SC, rate_hz)
        took(taken)
        rest_SC = rest_SC[taken:]
        if len(rest_SC):
            await asyncio.sleep(ROOM_S)
