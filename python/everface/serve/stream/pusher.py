"""A client's audio on its way into its live session: it may come faster than it is spoken, in bounds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import numpy as np

from everface.core.errors import BadInput, Unavailable
from everface.live.session import LiveSession

PIECE_S = 0.25  # pushed at once: the event loop serves other sessions in between
WAIT_S = 0.02  # for room in the session


class Pusher:
    """Used from the event loop only. `complain` gets a sentence about audio that cannot be used."""

    def __init__(
        self, live: LiveSession, rate_hz: int, channels: int, dtype: str, ahead_s: float, complain: Callable[[str], None]
    ) -> None:
        self._live, self._rate_hz, self._channels, self._dtype, self._complain = live, rate_hz, channels, np.dtype(dtype), complain
        self._most, self._ahead_s = int(ahead_s * rate_hz), ahead_s
        self._waiting: deque[np.ndarray | None] = deque()  # None: the end of a segment
        self._samples = 0
        self._turn = 0
        self._full = False  # the session has no room now
        self._stopped = False  # nothing is pushed any more
        self._filled = asyncio.Event()

    def add(self, data: bytes) -> None:
        """Interleaved samples. Raises BadInput, and takes nothing, for part of a sample and for more than may wait; Unavailable when the session is ending."""
        if self._stopped:
            raise Unavailable("this session is ending: open another")
        samples_SC = self._samples_of(data)
        if self._samples + len(samples_SC) > self._most:
            raise BadInput(f"more than {self._ahead_s:g} s of audio would wait, so this message was dropped: send it later")
        self._samples += len(samples_SC)
        piece = max(1, int(PIECE_S * self._rate_hz))
        if self._waiting and (last_SC := self._waiting[-1]) is not None and len(last_SC) + len(samples_SC) <= piece:
            self._waiting[-1] = np.concatenate([last_SC, samples_SC])  # or messages of one sample would be thousands of arrays
            return
        self._put(*(samples_SC[at : at + piece] for at in range(0, len(samples_SC), piece)))

    def push_user_audio(self, data: bytes) -> None:
        """Samples that the person hears. Raises BadInput, also where the model does not listen."""
        self._live.push_user_audio(self._samples_of(data), self._rate_hz)

    def _samples_of(self, data: bytes) -> np.ndarray:
        width = self._channels * self._dtype.itemsize
        if len(data) % width:
            raise BadInput(f"{len(data)} bytes are no whole number of samples of {width} bytes: send whole samples")
        return np.frombuffer(data, self._dtype).reshape(-1, self._channels)

    def end_segment(self) -> None:
        if len(self._waiting) > 4 * self._ahead_s / PIECE_S:
            raise BadInput("too many segments wait to be spoken: send fewer at a time")
        self._put(None)

    def clear(self) -> None:
        """An interruption: what waits goes."""
        self._turn += 1
        self._waiting.clear()
        self._samples = 0

    @property
    def waiting_s(self) -> float:
        return self._samples / self._rate_hz

    async def settled(self) -> None:
        """Until all of it is pushed, or waits for room, or nothing is pushed any more."""
        while (self._waiting or self._samples) and not self._full and not self._stopped:
            await asyncio.sleep(0)

    async def drained(self) -> None:
        """Until all of it is pushed, or nothing is any more."""
        while (self._waiting or self._samples) and not self._stopped:
            await asyncio.sleep(WAIT_S)

    async def run(self) -> None:
        """Push what comes, until cancelled. Raises what ended the session."""
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                while self._waiting:
                    samples_SC = self._waiting.popleft()
                    if samples_SC is None:
                        self._live.end_segment()
                    else:
                        await self._push(samples_SC)
                    await asyncio.sleep(0)
        finally:
            self._stopped = True

    async def _push(self, samples_SC: np.ndarray) -> None:
        turn = self._turn
        while len(samples_SC) and turn == self._turn:
            try:
                taken = self._live.push_audio(samples_SC, self._rate_hz)
            except BadInput as error:
                self._samples -= len(samples_SC)
                self._complain(str(error))
                break
            self._samples -= taken
            samples_SC = samples_SC[taken:]
            self._full = bool(len(samples_SC))
            if self._full:
                await asyncio.sleep(WAIT_S)
        self._full = False

    def _put(self, *pieces: np.ndarray | None) -> None:
        self._waiting.extend(pieces)
        self._filled.set()
