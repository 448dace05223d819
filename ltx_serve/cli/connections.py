"""The connections of the server: clients that keep it waiting are cut off, or they could use up all connections."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

_HEADERS_S = 15.0  # from the first byte, or from the connection, to the end of the headers
_READING_S = 60.0  # the longest that a client may take to read the next part of an answer


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with limits for what it waits for without end.

    h11 is the strict parser: it refuses what servers could understand in different ways, such as two lengths.
    """

    _waiting: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Waits for the end of headers that have begun."""
        before = self.cycle
        super().data_received(data)
        is_idle = self.cycle is None or self.cycle.response_complete
        if self.cycle is not before or not is_idle:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait()

    def pause_writing(self) -> None:
        """Waits for a client that does not read what it has asked for."""
        super().pause_writing()
        self._writing = self.loop.call_later(_READING_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Goes on when the client has read."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting for a client that has left."""
        super().connection_lost(exc)
        self._stop_waiting()
        if self._writing is not None:
            self._writing.cancel()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(_HEADERS_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
