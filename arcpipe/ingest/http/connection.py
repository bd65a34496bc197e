"""One client's connection: the callbacks of asyncio, complete requests, their answers, and its state.

`Reading` turns bytes into requests, with `RequestParser` for those without a known head. A handler gets each request as
an `Exchange` and may answer in any order; answers leave in the order of the requests. `Ending` ends the connection.
Nothing here knows of writes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

from arcpipe.access.tls import certificate_of
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.bodies import decode
from arcpipe.ingest.http.client_address import peer_of
from arcpipe.ingest.http.direct_body import BodyReceiver
from arcpipe.ingest.http.ending import Ending
from arcpipe.ingest.http.flow_control import ANSWERS_UNREAD, PIPELINE_FULL, SMALL_BODY_BYTES, TURN, WAL_BEHIND
from arcpipe.ingest.http.linger import undelivered_bytes
from arcpipe.ingest.http.reading import SMALL_READ_BYTES, Reading
from arcpipe.ingest.http.request_parser import WAITING_HEAD_BYTES, RequestParser
from arcpipe.ingest.http.states import ANSWER, BODY, FRESH, IDLE, LINGER
from arcpipe.units import KB

if TYPE_CHECKING:
    from arcpipe.access.tls import Certificate
    from arcpipe.codec.content_encoding import Coding
    from arcpipe.ingest.http.context import IngestContext, Surface
    from arcpipe.ingest.http.exchange import Exchange
    from arcpipe.ingest.http.link import Kind
    from arcpipe.ingest.http.outlines import Head
    from arcpipe.ingest.http.router import Handler

# Bytes of unread answers above which reading from a client pauses. By default the loop's TLS would hold 512 kB.
_UNREAD_BYTES: Final = 16 * KB


class Connection(asyncio.Protocol):
    """One client's connection. Except for the shared fields, all live as long as it does."""

    __slots__ = (
        # Shared by the worker's connections.
        *("_context", "unrouted"),
        # Of this one: its client, and its parts.
        *("_ending", "address", "certificate", "parser", "reading", "transport"),
        # Its state.
        *("paused", "paused_at", "since", "state"),
        # Requests whose answers have not left.
        *("_deferred", "_handling_deferred", "_receives_directly", "arriving", "exchanges"),
    )

    def __init__(self, context: IngestContext, surface: Surface, address: str = "") -> None:
        """Wait for `connection_made`.

        Args:
            surface: the paths of its listener.
            address: of the client, where a proxy tells it.
        """
        self._context = context
        self.unrouted = context.unrouted

        self.address = address
        self.certificate: Certificate | None = None  # the client's, once `Auth` has asked for it
        self.transport: asyncio.Transport | None = None
        self.parser = RequestParser(self, context, surface)
        self.reading = Reading(self, context, surface, self.parser)
        self._ending = Ending(self, context, self.parser, self.reading)

        self.state = FRESH
        self.since = context.now  # when the present state began, or last advanced
        self.paused = 0  # the reasons for not reading, as in `flow_control`
        self.paused_at = 0.0

        self.exchanges: deque[Exchange] = deque()  # in the order of their requests
        self.arriving: Exchange | None = None  # the last of them, while its body arrives
        # Requests that are handled once others are answered, each with its head, and the refusal that it gets instead.
        self._deferred: deque[tuple[Exchange, Head, bytes | None]] | None = None
        self._handling_deferred = False
        self._receives_directly = False  # `BodyReceiver` stands in for it

    # Callbacks of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_UNREAD_BYTES)
        self.address = self.address or peer_of(transport)
        context = self._context
        self.since = context.now  # without the time of a TLS handshake
        refusal: responses.Refusal | None = None
        if len(context.connections) >= context.limits.max_connections:
            refusal = responses.TOO_MANY_CONNECTIONS
        elif context.gate is not None:
            refusal = context.gate.opened(self)
        if refusal is None:
            context.connections.add(self)
        elif len(context.turned_away) < context.limits.max_turned_away:  # further ones get no answer
            context.turned_away.add(self)
            self.refuse(refusal)
        else:
            context.count_refusal(refusal.code)
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        reading, context = self.reading, self._context
        at = reading.take_known(data, 0) if self.parser.is_between and not reading.rest else 0
        if at < len(data):
            reading.go_on(data, at, reading.began if at else perf_counter())
        elif at > SMALL_READ_BYTES:
            seconds = perf_counter() - reading.began
            if seconds > context.turns.budget.small_seconds:
                reading.end_turn(seconds)
        if context.commit.pending_bytes > context.inflight.unchecked_bytes:
            context.inflight.check()
            context.inflight.admit(self)

    def body_room(self) -> memoryview:
        """Return the place in memory of the arriving body's next bytes."""
        body = self.parser.direct
        assert body is not None, "BUG: there is no body to read into"
        return body.room()

    def body_received(self, size: int) -> None:
        """Handle bytes that the loop has read into the memory of the arriving body."""
        began = perf_counter()
        context, parser = self._context, self.parser
        assert parser.direct is not None, "BUG: bytes were read into the memory of no body"
        parser.direct.size += size
        parser.count_plain(size)
        self.reading.end_turn(perf_counter() - began)
        if context.commit.pending_bytes > context.inflight.unchecked_bytes:
            context.inflight.check()
            context.inflight.admit(self)

    def eof_received(self) -> bool:
        """Go on answering a half-closed client."""
        # asyncio ends both directions of TLS at once: there is no other turn, and answers are lost. Records that are
        # being committed are not.
        may_answer = self.transport is not None and self.transport.can_write_eof()
        if self.reading.handle_rest_at_eof(may_answer):
            return True
        if self.arriving is not None:  # its body stays incomplete
            self.exchanges.pop().cut_off()
            self.arriving = None
            self.parser.drop_body()
        if self.exchanges:
            if may_answer:
                self.exchanges[-1].closes = True
                self.state = ANSWER
                return True
            self.exchanges.clear()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # Requests that are being committed go on; their answers are dropped.
        self.transport = None
        self.exchanges.clear()
        self._deferred = None
        if self.arriving is not None:
            self.arriving.cut_off()
            self.arriving = None
        self.parser.drop_body()
        self.reading.drop_rest()
        context = self._context
        if context.gate is not None:
            context.gate.closed(self)
        context.connections.discard(self)
        context.turned_away.discard(self)
        context.inflight.release(self)

    def pause_writing(self) -> None:
        """Take no more requests from a client that does not read its answers."""
        self.since = self._context.now
        self.pause_reading(ANSWERS_UNREAD)

    def resume_writing(self) -> None:
        self.resume_reading(ANSWERS_UNREAD)
        self._handle_deferred()

    # Requests, from their heads to their answers

    def take(self, head: Head, kind: type[Kind], body: bytes | None) -> tuple[Kind, bytes | None]:
        """Make the exchange of a request, and judge it by the token and limits of its sender. All requests come here.

        Args:
            kind: of `kinds`.
            body: None if it is still to come.

        Returns:
            The exchange, and the refusal that it gets instead of being handled.
        """
        context = self._context
        exchange = kind(self, head.headers, head.method, head.path, head.query, head.answered)
        self.exchanges.append(exchange)
        self.since = context.now
        if body is None:
            self.arriving = exchange
            self.state = BODY
        else:
            exchange.body = body
            self.state = ANSWER
        auth = context.auth
        return exchange, (auth.refusal(exchange, head.scope) if auth is not None and head.scope else None)

    def complete(self, exchange: Exchange, head: Head, refusal: bytes | None) -> None:
        """Handle or refuse a complete request; later, if too many wait for their answers."""
        context = self._context
        context.requests += 1
        exchange.received = perf_counter()
        if len(self.exchanges) > context.limits.max_pipelined or self.paused & ANSWERS_UNREAD:
            if len(self.exchanges) > context.limits.max_pipelined:
                self.pause_reading(PIPELINE_FULL)
            # One read may bring thousands more. Only small bodies wait here: larger ones must count as bytes in flight.
            if len(exchange.body) <= SMALL_BODY_BYTES:
                if self._deferred is None:
                    self._deferred = deque()
                self._deferred.append((exchange, head, refusal))
                return
        self._handle(exchange, head.handler, head.coding, refusal)

    def _handle(
        self, exchange: Exchange, handler: Handler | None, coding: Coding | None, refusal: bytes | None
    ) -> None:
        if refusal is not None:
            exchange.answer(refusal)
            return
        assert handler is not None
        if coding is not None and exchange.body:
            decode(self._context, exchange, coding, lambda: self._handle(exchange, handler, None, None))
            return
        try:
            handler(exchange)
        except Exception as error:
            self.answer_bug(exchange, error)

    def _handle_deferred(self) -> None:
        """Handle requests that came while too many were unanswered, unless the client does not read."""
        if self._handling_deferred:  # called again by an answer that was given at once
            return
        self._handling_deferred = True
        while self._deferred and not self.paused & ANSWERS_UNREAD:
            under_way = len(self.exchanges) - len(self._deferred) - (self.arriving is not None)
            if under_way >= self._context.limits.max_pipelined:
                break
            exchange, head, refusal = self._deferred.popleft()
            self._handle(exchange, head.handler, head.coding, refusal)
        self._handling_deferred = False

    def answer_bug(self, exchange: Exchange, error: Exception) -> None:
        """Answer 500, and log why."""
        self._context.report_bug(f"the handler of {exchange.path!r}", error, exchange.log_fields())
        exchange.answer(responses.INTERNAL_ERROR)

    def flush(self) -> None:
        """Send the answers that are ready, in the order of their requests."""
        transport = self.transport
        waiting = self.exchanges
        dated = self._context.dated
        while waiting and (response := waiting[0].response) is not None:
            exchange = waiting.popleft()
            if transport is None:
                continue
            response = dated[response]
            exchange.answered[response[9:12]] += 1
            if exchange.method == b"HEAD":
                response = responses.without_body(response)
            if exchange.closes:
                transport.write(responses.closing(response))
                waiting.clear()
                self._deferred = None
                self._ending.begin_linger()
                return
            transport.write(response)
        if not waiting and self.state == ANSWER:
            self.state = IDLE
            self.since = self._context.now
            # All its requests are answered: it may write again, unless the disk has not got them.
            if self.paused & WAL_BEHIND and not self._context.limits.writes_behind:
                self.resume_reading(WAL_BEHIND)
        parser = self.parser
        if parser.awaits_go_ahead:
            self.give_go_ahead()
        if self._deferred:
            self._handle_deferred()
        if self.paused & PIPELINE_FULL and len(waiting) <= self._context.limits.max_pipelined // 2:
            if not waiting or waiting[0] is self.arriving:  # all complete requests are answered
                parser.waiting_head_bytes = 0
            if parser.waiting_head_bytes <= WAITING_HEAD_BYTES:
                self.resume_reading(PIPELINE_FULL)

    def give_go_ahead(self) -> None:
        """Send the 100 for which the present body waits, once all earlier requests are answered."""
        if self.exchanges and self.exchanges[0] is self.arriving and self.transport is not None:
            self.parser.awaits_go_ahead = False
            self.transport.write(responses.CONTINUE)

    # Bodies that are received directly

    def receive_directly(self) -> None:
        """Have further reads go into the body's memory. TLS decrypts them elsewhere, and its pieces are copied."""
        transport = self.transport
        if transport is not None and not self._receives_directly and transport.get_extra_info("sslcontext") is None:
            self._receives_directly = True
            transport.set_protocol(BodyReceiver(self))

    def receive_pieces(self) -> None:
        """Have further reads come as pieces again."""
        if self._receives_directly:
            self._receives_directly = False
            if self.transport is not None:
                self.transport.set_protocol(self)

    # Pauses of reading

    def pause_reading(self, reason: int) -> None:
        """Stop reading, for one reason more."""
        if self.state == LINGER:  # further bytes are dropped anyway
            return
        if not self.paused and self.transport is not None:
            self.transport.pause_reading()
            self.paused_at = self._context.now
        self.paused |= reason

    def resume_reading(self, reason: int, by_turn: bool = False) -> None:
        """Take one reason away. After the last, handle what was read already, and then read on.

        Args:
            by_turn: wait for the connection's turn first, because others go on at the same moment.
        """
        if self.paused & reason:
            self.paused &= ~reason
            if not self.paused and self.transport is not None:
                if self.reading.rest or by_turn:
                    self.paused = TURN
                    self._context.turns.wait(self.reading)
                else:
                    self.give_time_back()
                    self.transport.resume_reading()

    def give_time_back(self) -> None:
        """Do not count the time without reading against the client."""
        now = self._context.now
        pause = now - self.paused_at
        self.paused_at = now
        self.since += pause
        self.parser.latest_since += pause

    # The end

    def refuse(self, response: bytes) -> None:
        """Answer the present request, or malformed bytes, after all earlier ones, and end the connection."""
        self._ending.refuse(response)

    def refuse_for_room(self) -> None:
        """Refuse the body that is arriving, because the worker holds too much."""
        self._ending.refuse(responses.NO_ROOM)
        self.parser.drop_body()  # also after the last request, which leaves bytes that are never asked for

    def give_up(self) -> None:
        """End the connection at once, because its client does not read and others need the memory."""
        self.reading.drop_rest()
        if self.transport is not None:
            self.transport.abort()

    def finish(self) -> None:
        """End the connection with its last answer, because the worker stops."""
        if self.exchanges:
            self.exchanges[-1].closes = True
        elif self.reading.rest:  # its first request is marked as the last when its turn comes
            return
        elif self.transport is not None and self.state != LINGER:
            self.transport.close()

    def expire(self) -> None:
        """End the connection if it has been in its present state for too long."""
        self._ending.expire()

    def note_dropped(self) -> None:
        """Note that the client has sent bytes that are dropped."""
        self._ending.note_dropped()

    @property
    def is_over(self) -> bool:
        """Whether the last request that gets an answer has come; further bytes are dropped (RFC 9112 §9.6)."""
        last = self.exchanges[-1] if self.exchanges else None
        return last is not None and last.closes and last is not self.arriving

    @property
    def is_deaf(self) -> bool:
        """Whether further bytes from the client are dropped."""
        return self.state == LINGER or (bool(self.exchanges) and self.is_over)

    @property
    def is_finished(self) -> bool:
        """Whether the client has all answers that it waits for."""
        if self.exchanges or self.state not in (FRESH, IDLE, LINGER):
            return False
        return self.transport is None or not undelivered_bytes(self.transport)

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended, so that answers are dropped."""
        return self.transport is None

    # Queries of others

    def client_of(self, headers: dict[bytes, bytes]) -> str:
        """Return the address of the client that sent these headers."""
        forwarded = self._context.forwarded
        return self.address if forwarded is None else forwarded.client(self.address, headers)

    def peer_certificate(self) -> Certificate | None:
        """Return the client's certificate if TLS has asked for one and found it valid."""
        if self.certificate is None and self.transport is not None:
            self.certificate = certificate_of(self.transport.get_extra_info("peercert"))
        return self.certificate

    def count_refusal(self, response: bytes) -> None:
        """Count an answer if it refuses a request."""
        if isinstance(response, responses.Refusal):
            self._context.count_refusal(response.code)

    @property
    def announced_bytes(self) -> int:
        """Size of the body that is arriving, by its head; -1 if the head does not tell, 0 if no body is accepted."""
        length = self.parser.length
        return length if self.arriving is not None and length <= self._context.limits.max_body else 0

    @property
    def brings_large_body(self) -> bool:
        """Whether the body that is arriving is not small."""
        return self.arriving is not None and max(self.parser.length, self.parser.size) > SMALL_BODY_BYTES

    @property
    def has_posted(self) -> bool:
        """Whether a complete POST request waits for its answer."""
        arriving = self.arriving
        return any(exchange.method == b"POST" and exchange is not arriving for exchange in self.exchanges)

    @property
    def is_unread(self) -> bool:
        """Whether reading has paused because the client does not read its answers."""
        return bool(self.paused & ANSWERS_UNREAD)

    @property
    def holds_unread(self) -> bool:
        """Whether the rest of a read is kept although the client does not read its answers."""
        return bool(self.reading.rest) and self.is_unread
