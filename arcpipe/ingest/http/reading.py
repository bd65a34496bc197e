"""The reads of one connection: requests with a known head are handled here, all others by the parser, in turns.

A read may bring thousands of requests. The rest after the connection's turn is kept for its next turn, and the socket
is not read meanwhile.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from arcpipe.ingest.http import responses
from arcpipe.ingest.http.flow_control import ANSWERS_UNREAD, PIPELINE_FULL, TURN
from arcpipe.ingest.http.request_parser import PARSED_BYTES
from arcpipe.ingest.http.states import BODY, LINGER
from arcpipe.units import KB

if TYPE_CHECKING:
    from arcpipe.ingest.http.context import IngestContext, Surface
    from arcpipe.ingest.http.link import Link
    from arcpipe.ingest.http.outlines import AnyOutline
    from arcpipe.ingest.http.request_parser import RequestParser

# Bytes. A shorter read is not timed: it takes `small_seconds` at most, and to look at the clock takes time, too.
SMALL_READ_BYTES: Final = KB


class Reading:
    """Makes requests of one client's bytes, and keeps the rest of a read for the connection's next turn."""

    __slots__ = (
        # Of the connection.
        *("_connection", "_context", "_outline", "_parser", "_surface"),
        # Of the present read and its rest.
        *("_at_eof", "_rest_at", "_seconds", "began", "rest"),
    )

    def __init__(self, connection: Link, context: IngestContext, surface: Surface, parser: RequestParser) -> None:
        self._connection = connection
        self._context = context
        self._surface = surface
        self._parser = parser
        self._outline: AnyOutline | None = None  # of the last known head: the next one is likely to be the same

        self.began = 0.0  # perf_counter seconds: the start of handling the present read
        self._seconds = 0.0  # that the last large read took
        self.rest = b""  # of a read, for the connection's next turn: from `_rest_at` on
        self._rest_at = 0
        self._at_eof = False  # the client will send nothing more, and there is a rest

    def take_known(self, data: bytes, start: int, turn_end: float = 0.0) -> int:
        """Handle the requests from `start` on while they are complete, their heads known, and the turn not over.

        Nearly all requests come this way, so each line counts (`benchmarks.micro.request_cost`).

        Args:
            turn_end: perf_counter seconds; 0: this sets it after the first request.

        Returns:
            The start of the first request that was not handled.
        """
        connection = self._connection
        context = self._context
        heads = self._surface.heads
        outline = self._outline
        usual_kind = context.exchange_kind
        max_body = context.limits.max_body
        size = len(data)
        while start < size and connection.state != LINGER and heads.are_used:
            found = outline.cut(data, start) if outline is not None else None
            if found is None:
                outline = heads.find(data, start)
                found = outline.cut(data, start) if outline is not None else None
                if found is None:
                    break
                self._outline = outline
            assert outline is not None
            end, length, key, request_id = found
            after = end + length
            if after > size or after - end > max_body:
                break
            head, kind = outline.head, usual_kind
            if request_id:
                head, kind = head.with_id(request_id), context.identified_kind
            exchange, refusal = connection.take(head, kind, data[end:after])
            if key:
                exchange.key = key
            connection.complete(exchange, head, refusal)
            start = after
            if not turn_end:
                self.began = exchange.received
                turn_end = exchange.received + context.turns.read_seconds
            if (connection.paused and connection.paused & ~TURN) or exchange.received > turn_end:
                break
        return start

    def go_on(self, data: bytes, at: int, began: float) -> None:
        """Handle a read from `at` on until the connection's turn is over, and keep the rest for its next turn."""
        connection, parser = self._connection, self._parser
        if connection.state == LINGER or (connection.exchanges and connection.is_over):  # `is_deaf`, without a call
            connection.note_dropped()
            return
        if self.rest:  # TLS may bring more although it was told not to
            rest = self.rest[self._rest_at :]
            self.drop_rest()
            self._keep(rest + data, 0)
            return
        size = len(data)
        turn_end = began + self._context.turns.read_seconds
        while not (connection.paused and self._must_stop()):
            end = parser.piece_end(data, at) if size - at > PARSED_BYTES or parser.is_plain else size
            if end - at == size:
                piece: bytes | memoryview = data
            elif end - at <= PARSED_BYTES:
                piece = data[at:end]  # copying a few bytes takes less time than a view of them
            else:
                piece = memoryview(data)[at:end]
            parser.feed(piece, end == size)
            at = end
            if at < size and parser.is_between:
                at = self.take_known(data, at, turn_end)
            if at == size or connection.is_deaf:
                if parser.direct is not None:
                    connection.receive_directly()
                break
            if perf_counter() > turn_end:
                self._keep(data, at)
                break
        else:
            self._keep(data, at)
        self.end_turn(perf_counter() - began)

    def end_turn(self, seconds: float) -> None:
        """Count the time of a read, or of a part of one; after a long one, the next read waits for its turn."""
        connection, turns = self._connection, self._context.turns
        budget = turns.budget
        self._seconds = seconds
        if seconds > budget.small_seconds:
            turns.charge(seconds)
        if (self.rest or seconds > budget.slice_seconds / 2) and not connection.paused and connection.state != LINGER:
            connection.pause_reading(TURN)
            turns.wait(self)

    def take_turn(self) -> float:
        """Go on with the rest of a read, and let the next one come; return the seconds that both will have taken."""
        connection, turns = self._connection, self._context.turns
        if connection.paused != TURN:  # ended, or paused for another reason, after which it gets a turn
            connection.paused &= ~TURN
            return 0.0
        transport = connection.transport
        if transport is None or transport.is_closing():
            self.drop_rest()
            return 0.0
        expected = max(self._seconds, turns.budget.slice_seconds)  # the next read will be like the last one
        if not self.rest:
            connection.resume_reading(TURN)
            return expected
        connection.give_time_back()
        self._handle_rest()
        if not self.rest:
            connection.resume_reading(TURN)
            if self._at_eof and not connection.eof_received():
                transport.close()
            taken, self._seconds = self._seconds, expected
            return taken + expected
        if connection.paused == TURN:
            turns.wait(self)
        else:
            connection.paused &= ~TURN
        return self._seconds

    def handle_rest_at_eof(self, may_answer_later: bool) -> bool:
        """Handle, or keep, the rest of a read when the client sends nothing more.

        Args:
            may_answer_later: whether answers can still be sent after this turn.

        Returns:
            Whether the rest is kept; then `eof_received` is called again after it was handled.
        """
        if not self.rest:
            return False
        if may_answer_later:
            self._at_eof = True
            return True
        turns = self._context.turns
        while self.rest and not self._must_stop() and turns.spent < turns.budget.turn_seconds:
            self._handle_rest()
        self.drop_rest()
        return False

    def drop_rest(self) -> None:
        """Drop the rest of a read."""
        self._context.kept_bytes -= len(self.rest)
        self.rest = b""

    def _must_stop(self) -> bool:
        """Return whether to stop handling a read now. Bytes of a body that have arrived are still accepted."""
        connection = self._connection
        if connection.state == BODY:
            return bool(connection.paused & (PIPELINE_FULL | ANSWERS_UNREAD))
        return bool(connection.paused & ~TURN)

    def _handle_rest(self) -> None:
        """Go on with the rest of a read for the time of one turn."""
        data, at = self.rest, self._rest_at
        self.drop_rest()
        began = perf_counter()
        if self._parser.is_between:
            at = self.take_known(data, at, began + self._context.turns.budget.slice_seconds)
        self.go_on(data, at, began)

    def _keep(self, data: bytes, at: int) -> None:
        context = self._context
        if not context.has_room_to_keep(len(data)):
            self._connection.refuse(responses.TOO_MANY_REQUESTS_WAIT)
            return
        context.kept_bytes += len(data)
        self.rest, self._rest_at = data, at
