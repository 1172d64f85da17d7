"""HTTP/1.1 as uvicorn speaks it, but a connection that does not ask for anything in time is closed."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

ASK_S = 10.0  # from the connection, or the last response, to the end of a request's header
MOST_SILENT = 64  # connections of one address that ask for nothing: with more, the one that has been silent longest is closed


class Protocol(H11Protocol):
    """uvicorn waits without end for a request that has not come whole."""

    _asking: asyncio.TimerHandle | None = None
    _silent: ClassVar[dict[str, dict[Protocol, None]]] = {}  # by address, the longest silent first

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def handle_events(self) -> None:
        super().handle_events()
        if self._asked:
            self._forget()

    def on_response_complete(self) -> None:
        self._wait()  # first: what it calls may have the next request
        super().on_response_complete()

    @property
    def _asked(self) -> bool:
        """A request has come, or the connection is a WebSocket's now."""
        return (self.cycle is not None and not self.cycle.response_complete) or self.transport.get_protocol() is not self

    def _wait(self) -> None:
        self._forget()
        self._asking = self.loop.call_later(ASK_S, self._give_up)
        silent = self._silent.setdefault(self._address, {})
        silent[self] = None
        if len(silent) > MOST_SILENT:
            next(iter(silent))._give_up()

    def _forget(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
            silent = self._silent.get(self._address, {})
            silent.pop(self, None)
            if not silent:
                self._silent.pop(self._address, None)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _give_up(self) -> None:
        self._forget()
        if not self._asked and not self.transport.is_closing():
            self.transport.close()
