"""HTTP/1.1 on a raw socket: asyncio's callbacks, then the parser's, then the answers, in the order of events.

A connection reads requests with httptools and hands each to a handler as an `Exchange`. Handlers answer when they
can, in any order; answers leave in the order of the requests. Nothing here knows what a write is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qs

import httptools

from arcpipe.errors import BadPayload
from arcpipe.ingest import responses
from arcpipe.ingest.limits import MAX_PIPELINED

if TYPE_CHECKING:
    from arcpipe.ingest.router import Handler
    from arcpipe.ingest.worker import IngestContext

log = logging.getLogger(__name__)

# After an answer that ends the connection, what the client still sends is read and dropped for so long, because a
# reset would take the answer away from it.
LINGER_SECONDS: Final = 2.0
# A refused request's body up to this size is read to its end, so that the connection can be used again.
_DISCARD_BYTES: Final = 1 << 20

# What a connection is waiting for, and so which timeout holds.
IDLE: Final = 0
HEADER: Final = 1
BODY: Final = 2
ANSWER: Final = 3
LINGER: Final = 4

# Why reading is paused, beside GATE_CLOSED; several reasons may hold at a time.
PIPELINE_FULL: Final = 1
ANSWERS_UNREAD: Final = 2


class Exchange:
    """One request and its answer. Header names are lower case."""

    __slots__ = ("body", "closes", "connection", "headers", "method", "path", "query", "response", "success")

    def __init__(self, connection: Connection, headers: dict[bytes, bytes]) -> None:
        self.connection = connection
        self.headers = headers
        self.method = b""
        self.path = b""
        self.query = b""
        self.body = b""
        self.success = b""  # for handlers that answer later: what to answer if all goes well
        self.response: bytes | None = None
        self.closes = False

    def answer(self, response: bytes) -> None:
        """Gives the response; it leaves once all earlier requests of the connection are answered."""
        self.response = response
        waiting = self.connection.exchanges
        if waiting and waiting[0] is self:
            self.connection.flush()

    def parameters(self) -> dict[str, str]:
        """The query's parameters.

        Raises:
            BadPayload: a parameter is given twice, or the query is not UTF-8.
        """
        if not self.query:
            return {}
        try:
            parsed = parse_qs(self.query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32)
        except ValueError:
            raise BadPayload("the query string cannot be decoded") from None
        for name, values in parsed.items():
            if len(values) > 1:
                raise BadPayload(f"query parameter '{name}' is given {len(values)} times")
        return {name: values[0] for name, values in parsed.items()}


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body_size",
        "_chunks",
        "_context",
        "_exchange",
        "_go_ahead_due",
        "_handler",
        "_header_size",
        "_headers",
        "_parser",
        "_paused",
        "_refusal",
        "_transport",
        "_url",
        "exchanges",
        "since",
        "state",
    )

    def __init__(self, context: IngestContext) -> None:
        self._context = context
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._header_size = 0
        self._url = b""
        self._chunks: list[bytes] = []
        self._body_size = 0
        self._exchange: Exchange | None = None  # the request whose body is arriving
        self._handler: Handler | None = None
        self._refusal: bytes | None = None
        self._go_ahead_due = False  # the body waits for a 100, and earlier answers have to leave first
        self._paused = 0
        self.exchanges: deque[Exchange] = deque()
        self.state = IDLE
        self.since = context.now

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        context = self._context
        if len(context.connections) < context.limits.max_connections:
            context.connections.add(self)
        else:
            self.state = LINGER
            self._transport.write(responses.TOO_MANY_CONNECTIONS)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self.state == LINGER:
            return
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._decline_upgrades(data, offer)
        except httptools.HttpParserCallbackError as error:
            # A refusal from within a callback; anything else is a bug and ends this connection only.
            cause = error.__context__
            if not isinstance(cause, _Refused):
                raise
            self._refuse_connection(cause.response)
        except httptools.HttpParserError as error:
            reason = str(error) or type(error).__name__
            self._refuse_connection(responses.error(400, "bad_request", f"malformed HTTP request: {reason}"))
        else:
            context = self._context
            if context.gate.is_closed(context.commit.pending_bytes):
                context.gate.pause(self)

    def eof_received(self) -> bool:
        """Half-closed clients still get the answers that they wait for."""
        if self._exchange is not None:  # its body will never be complete
            self.exchanges.pop()
            self._exchange = None
        if self.exchanges:
            self.exchanges[-1].closes = True
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # Requests that are being committed go on; their answers find nobody.
        self._transport = None
        self.exchanges.clear()
        self._chunks.clear()
        self._context.connections.discard(self)

    def pause_writing(self) -> None:
        """The client does not read its answers: take no more of its requests until it does."""
        self.pause_reading(ANSWERS_UNREAD)

    def resume_writing(self) -> None:
        self.resume_reading(ANSWERS_UNREAD)

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.state == LINGER:  # the last answer has left while the bytes behind its request were being parsed
            raise _Refused(b"")
        self.state = HEADER
        self.since = self._context.now
        self._url = b""
        self._headers = {}
        self._header_size = 0
        self._refusal = None

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_header_bytes(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header_bytes(len(name) + len(value))
        if self._exchange is not None:  # a trailer, and nothing here reads trailers
            return
        name = name.lower()
        headers = self._headers
        if name in headers:
            # Joined as RFC 9110 §5.2 says; single-valued headers then fail where they are read.
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        context = self._context
        method = self._parser.get_method()
        if self._parser.should_upgrade():
            if method == b"CONNECT":
                raise _Refused(responses.NOT_FOUND)
            return
        exchange = Exchange(self, self._headers)
        exchange.method = method
        exchange.path, _, exchange.query = self._url.partition(b"?")
        if not exchange.path.startswith(b"/"):
            exchange.path = _path_of_url(exchange.path)
        exchange.closes = context.draining or not self._parser.should_keep_alive()
        self._exchange = exchange
        self.exchanges.append(exchange)
        self.state = BODY
        self.since = context.now
        self._body_size = 0
        route = context.routes.get(exchange.path)
        if route is None:
            self._refusal = responses.NOT_FOUND
        else:
            handler = route.handlers.get(method)
            if handler is None:
                self._refusal = route.wrong_method
            else:
                self._handler = handler
        headers = self._headers
        length = headers.get(b"content-length")
        if length is not None and int(length) > context.limits.max_body:
            raise _Refused(self._too_large())
        if self._refusal is None and b"content-encoding" in headers and headers[b"content-encoding"] != b"identity":
            self._refusal = responses.error(
                415, "unsupported_encoding", f"Content-Encoding {headers[b'content-encoding']!r} is not supported"
            )
        if b"expect" in headers and self._parser.get_http_version() != "1.0":
            if headers[b"expect"].lower() != b"100-continue":
                raise _Refused(responses.error(417, "expectation_failed", "only Expect: 100-continue is supported"))
            if self._refusal is not None:  # at once, for the body may never come
                raise _Refused(self._refusal)
            self._go_ahead_due = True
            self._give_go_ahead()
        if self._refusal is not None and (length is None or int(length) > _DISCARD_BYTES) and self._has_body():
            raise _Refused(self._refusal)

    def on_body(self, body: bytes) -> None:
        self.since = self._context.now  # the body's timeout is for a sender that falls silent
        self._go_ahead_due = False
        self._body_size += len(body)
        if self._body_size > self._context.limits.max_body:
            raise _Refused(self._too_large())
        if self._refusal is None:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None:  # an offer to upgrade: `_decline_upgrades` follows
            return
        self._exchange = None
        self.state = ANSWER
        chunks = self._chunks
        if chunks:
            exchange.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks = []
        self._context.requests += 1
        if self._refusal is not None:
            exchange.answer(self._refusal)
            return
        handler = self._handler
        assert handler is not None
        try:
            handler(exchange)
        except Exception:
            context = self._context
            if context.now >= context.next_bug_line:  # a bug on the hot path must not fill the disk with its log
                context.next_bug_line = context.now + 1.0
                log.exception("a bug in the handler of %r; answered 500", exchange.path)
            exchange.answer(responses.INTERNAL_ERROR)
        if len(self.exchanges) > MAX_PIPELINED:
            self.pause_reading(PIPELINE_FULL)

    # Answers, and the end

    def flush(self) -> None:
        """Sends the answers that are ready, in the order of their requests."""
        transport = self._transport
        waiting = self.exchanges
        while waiting and waiting[0].response is not None:
            exchange = waiting.popleft()
            if transport is None:
                continue
            response = cast(bytes, exchange.response)
            if exchange.method == b"HEAD":
                response = responses.without_body(response)
            if exchange.closes:
                transport.write(responses.closing(response))
                waiting.clear()
                self._linger()
                return
            transport.write(response)
        if not waiting and self.state == ANSWER:
            self.state = IDLE
            self.since = self._context.now
        if self._go_ahead_due:
            self._give_go_ahead()
        if self._paused & PIPELINE_FULL and len(waiting) <= MAX_PIPELINED // 2:
            self.resume_reading(PIPELINE_FULL)

    def pause_reading(self, reason: int) -> None:
        if not self._paused and self._transport is not None:
            self._transport.pause_reading()
        self._paused |= reason

    def resume_reading(self, reason: int) -> None:
        """Takes one reason away; reading goes on when it was the last."""
        if self._paused & reason:
            self._paused &= ~reason
            if not self._paused and self._transport is not None:
                self._transport.resume_reading()

    def expire(self) -> None:
        """The time of the present state is over."""
        if self.state in (HEADER, BODY):
            self._refuse_connection(responses.REQUEST_TIMEOUT)
        elif self._transport is not None:
            self._transport.close()

    def finish(self) -> None:
        """The worker is going down: end the connection with its last answer."""
        if self.exchanges:
            self.exchanges[-1].closes = True
        elif self._transport is not None and self.state != LINGER:
            self._transport.close()

    def _give_go_ahead(self) -> None:
        """Sends the 100 that the body at hand waits for, once all earlier requests are answered."""
        if self.exchanges and self.exchanges[0] is self._exchange and self._transport is not None:
            self._go_ahead_due = False
            self._transport.write(responses.CONTINUE)

    def _decline_upgrades(self, data: bytes, offer: httptools.HttpParserUpgrade) -> None:
        """Goes on in HTTP/1.1, as RFC 9110 §7.8 allows, with the same request without the offer.

        llhttp is done with HTTP once it has seen an offer, so a new parser reads the head again, and what follows it.
        """
        rest = memoryview(data)
        while True:
            rest = rest[offer.args[0] :]
            version = self._parser.get_http_version().encode("ascii")
            head = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, version)]
            head += [b"%b: %b" % header for header in self._headers.items() if header[0] != b"upgrade"]
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(b"\r\n".join([*head, b"", b""]))
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as following:
                offer = following
            else:
                return

    def _refuse_connection(self, response: bytes) -> None:
        """Answers the request at hand (or the bytes that are none) behind all earlier ones, and ends."""
        if self.state == LINGER:  # ended already
            return
        exchange = self._exchange
        if exchange is None:
            exchange = Exchange(self, {})
            self.exchanges.append(exchange)
        self._exchange = None
        self._chunks = []
        self._context.requests += 1
        self.state = LINGER  # nothing more is read, whatever still has to be answered
        self.since = self._context.now
        exchange.closes = True
        exchange.answer(response)

    def _linger(self) -> None:
        transport = self._transport
        self.state = LINGER
        self.since = self._context.now
        if transport is None:
            return
        transport.write_eof()
        if self._paused:
            self._paused = 0
            transport.resume_reading()

    def _has_body(self) -> bool:
        return b"transfer-encoding" in self._headers or self._headers.get(b"content-length", b"0") != b"0"

    def _count_header_bytes(self, size: int) -> None:
        self._header_size += size + 4
        if self._header_size > self._context.limits.max_header:
            limit = self._context.limits.max_header >> 10
            raise _Refused(
                responses.error(
                    431, "header_too_large", f"request line and headers exceed server.max_header_kb = {limit}"
                )
            )

    def _too_large(self) -> bytes:
        limit = self._context.limits.max_body >> 20
        return responses.error(413, "body_too_large", f"the body exceeds server.max_body_mb = {limit}")


def _path_of_url(url: bytes) -> bytes:
    """The path in a target that is a whole URL, which RFC 9112 §3.2.2 has every server accept; else what it was."""
    scheme, separator, rest = url.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return url
    return b"/" + rest.partition(b"/")[2]


class _Refused(Exception):
    """Raised within a parser callback: the connection ends with this response."""

    def __init__(self, response: bytes) -> None:
        super().__init__()
        self.response = response
