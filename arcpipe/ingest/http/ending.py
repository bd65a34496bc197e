"""The end of a connection: with a refusal, with its last answer, or after a timeout."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from arcpipe.ingest.http import responses
from arcpipe.ingest.http.exchange import NO_HEADERS
from arcpipe.ingest.http.flow_control import ANSWERS_UNREAD, NO_ROOM, WAL_BEHIND
from arcpipe.ingest.http.linger import LINGER_SECONDS, Linger, is_in_kernel, undelivered_bytes
from arcpipe.ingest.http.states import BODY, FRESH, HEADER, IDLE, LINGER

if TYPE_CHECKING:
    from arcpipe.ingest.http.context import IngestContext
    from arcpipe.ingest.http.link import Link
    from arcpipe.ingest.http.reading import Reading
    from arcpipe.ingest.http.request_parser import RequestParser


class Ending:
    """Ends one connection, in a way that lets its client read all its answers."""

    __slots__ = ("_connection", "_context", "_linger", "_parser", "_reading")

    def __init__(self, connection: Link, context: IngestContext, parser: RequestParser, reading: Reading) -> None:
        self._connection = connection
        self._context = context
        self._parser = parser
        self._reading = reading
        self._linger: Linger | None = None  # after the transport has the last answer

    def refuse(self, response: bytes) -> None:
        """Answer the present request, or malformed bytes, after all earlier ones, and end the connection."""
        connection, context = self._connection, self._context
        if connection.state == LINGER or connection.is_over:  # ended already
            return
        exchange = connection.arriving
        if exchange is None:  # an answer to HEAD has no body
            exchange = context.exchange_kind(connection, NO_HEADERS, self._parser.method_so_far())
            connection.exchanges.append(exchange)
        self._drop_requests()
        context.requests += 1
        connection.state = LINGER  # nothing more is read, even if answers are still due
        connection.since = context.now
        exchange.closes = True
        exchange.answer(response)

    def begin_linger(self) -> None:
        """End the sending side, because the transport has the last answer."""
        connection, context = self._connection, self._context
        is_cut_short = connection.state == LINGER  # by a refusal, so more of the request may come
        connection.state = LINGER
        connection.since = context.now
        self._drop_requests()
        transport = connection.transport
        if transport is None:
            return
        sending = context.limits.body_timeout if connection not in context.turned_away else LINGER_SECONDS
        self._linger = Linger(connection.since, context.limits.max_body_seconds, sending)
        if transport.can_write_eof():
            transport.write_eof()
        elif not is_cut_short and is_in_kernel(transport):
            transport.close()  # TLS reads on until the client closes, or until ssl_shutdown_timeout
        if connection.paused:
            connection.paused = 0
            transport.resume_reading()

    def note_dropped(self) -> None:
        """Note that the client has sent bytes that are dropped."""
        if self._linger is not None:
            self._linger.note_dropped(self._context.now)

    def expire(self) -> None:
        """End a connection that has been in its present state for too long, unless the worker is the reason."""
        connection = self._connection
        transport, state, paused = connection.transport, connection.state, connection.paused
        if transport is None or (self._reading.rest and not connection.is_unread):  # it waits for its turn
            return
        if state in (HEADER, BODY) and not paused & ANSWERS_UNREAD:
            if not paused:
                self.refuse(responses.REQUEST_TIMEOUT)
            elif paused & NO_ROOM and self._context.now - connection.paused_at > self._context.limits.body_timeout:
                connection.refuse_for_room()
        elif state in (FRESH, IDLE) and paused & (WAL_BEHIND | NO_ROOM) and not connection.is_unread:
            pass  # its request may be in the socket already, unread
        elif state == LINGER and self._lingers_on(transport):
            pass
        elif transport.get_write_buffer_size():  # otherwise a client that does not read would keep it open for ever
            transport.abort()
        else:
            transport.close()

    def _lingers_on(self, transport: asyncio.Transport) -> bool:
        now, patience = self._context.now, self._context.limits.keep_alive
        if self._linger is None:  # earlier answers leave first, to a slow client
            return now - self._connection.since <= patience
        return self._linger.goes_on(undelivered_bytes(transport), now, patience)

    def _drop_requests(self) -> None:
        """Drop incomplete requests, and bytes that are not handled yet."""
        self._connection.arriving = None
        self._parser.stop()
        self._reading.drop_rest()
