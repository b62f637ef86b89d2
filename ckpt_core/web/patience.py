"""How long a client may take to ask: uvicorn itself waits for ever for a request that never becomes whole."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["SECONDS", "PatientProtocol"]

SECONDS = 15
"""For the whole of a request, its body too; and between an answer and the next request of a connection."""


class PatientProtocol(H11Protocol):
    """Closes a connection whose request is not there in time, however slowly it goes on coming."""

    seconds: ClassVar[float] = SECONDS

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._end = self.loop.call_later(self.seconds, transport.abort)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop()
        elif self._end is None and self.timeout_keep_alive_task is None:  # the next request has begun
            self._end = self.loop.call_later(self.seconds, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _stop(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
