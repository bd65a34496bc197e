"""HTTP/1.1 on a raw socket: asyncio's callbacks, then the parser's, then the answers, in the order of events.

A connection reads requests with httptools and hands each to a handler as an `Exchange`. Handlers answer when they
can, in any order; answers leave in the order of the requests. Nothing here knows what a write is.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qs

import httptools

from arcpipe.codec.content_encoding import ACCEPTED, Coding, Decoder, coding_of
from arcpipe.errors import BadPayload, PayloadTooLarge, UnsupportedEncoding
from arcpipe.ingest import responses
from arcpipe.ingest.heads import LENGTH, LENGTH_BYTES, LENGTH_LOWER, MAX_DIGITS, MAX_HEAD_BYTES, Head
from arcpipe.ingest.limits import ANSWERS_UNREAD, NO_ROOM, PIPELINE_FULL, SMALL_BODY_BYTES
from arcpipe.ingest.request_ids import HEADER as REQUEST_ID

if TYPE_CHECKING:
    from arcpipe.ingest.router import Handler
    from arcpipe.ingest.worker import IngestContext

log = logging.getLogger(__name__)

# After an answer that ends the connection, what the client still sends is read and dropped for so long, because a
# reset would take the answer away from it.
LINGER_SECONDS: Final = 2.0
# A refused request's body up to this size is read to its end, so that the connection can be used again.
_DISCARD_BYTES: Final = 1 << 20

# What a request line has beside its URL, at most: `_check_header_bytes` does not count it.
_REQUEST_LINE_BYTES: Final = 64

# Smaller pieces of a body are joined as they arrive, larger ones when all are there.
_PIECE_BYTES: Final = 1024

# What may come out of an encoded body in the loop itself: less than a millisecond.
_INLINE_BYTES: Final = 256 << 10

_ACCEPT_ENCODING: Final = f"Accept-Encoding: {ACCEPTED}\r\n".encode("ascii")

# Connections above the limit that are told so and given time to read it; further ones are cut off.
_MAX_TURNED_AWAY: Final = 256

# What a connection is waiting for, and so which timeout holds.
IDLE: Final = 0
HEADER: Final = 1
BODY: Final = 2
ANSWER: Final = 3
LINGER: Final = 4

# A Host field (RFC 9110 §7.2) in the characters of names and addresses; never one that was sent twice, whose two values
# are joined with a comma.
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-fv:.]+\])(?::[0-9]*)?\Z")
# Values that were found good are remembered, up to so many.
_HOSTS_KEPT: Final = 1024
# Of connections and requests that have none of their own, yet or any more.
NO_HEADERS: Final[dict[bytes, bytes]] = {}


class Exchange:
    """One request and its answer. Header names are lower case."""

    __slots__ = (
        *("answered", "body", "closes", "connection", "databases", "headers", "method", "path", "query"),
        *("received", "response", "success"),
    )

    def __init__(
        self,
        connection: Connection,
        headers: dict[bytes, bytes],
        method: bytes = b"",
        path: bytes = b"",
        query: bytes = b"",
    ) -> None:
        self.connection = connection
        self.headers = headers
        self.method = method
        self.path = path
        self.query = query
        self.body = b""
        self.databases: frozenset[str] | None = None  # that the sender's token is for; None is all
        self.success = b""  # for handlers that answer later: what to answer if all goes well
        self.response: bytes | None = None
        self.closes = False
        self.received = 0.0  # perf_counter seconds: when the request was complete
        self.answered = connection.unrouted  # where the answer's status is counted

    def log_fields(self) -> dict[str, dict[str, str]] | None:
        """The `extra` of log lines about it."""
        return None

    def cut_off(self) -> None:
        """Called where the client is gone before its request was complete."""

    def answer(self, response: bytes) -> None:
        """Gives the response; it leaves once all earlier requests of the connection are answered."""
        if type(response) is not bytes:
            response = self.refused(response)
        self.response = response
        waiting = self.connection.exchanges
        if waiting and waiting[0] is self:
            self.connection.flush()

    def refused(self, response: bytes) -> bytes:
        """Counts a refusal, and gives it the shape that the path's clients read."""
        self.connection.count_refusal(response)
        return responses.in_shape_of(self.path, response)

    def parameters(self) -> dict[str, str]:
        """The query's parameters. Raises BadPayload as `parse_parameters` does."""
        return parse_parameters(self.query) if self.query else {}


def parse_parameters(text: bytes) -> dict[str, str]:
    """A query string, or a form in the same encoding.

    Raises:
        BadPayload: a parameter is given twice, or the text is not UTF-8.
    """
    try:
        parsed = parse_qs(text.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError:
        raise BadPayload("the query string cannot be decoded") from None
    for name, values in parsed.items():
        if len(values) > 1:
            raise BadPayload(f"query parameter '{name}' is given {len(values)} times")
    return {name: values[0] for name, values in parsed.items()}


# A complete request: its handler, how its body is encoded, and the refusal that it gets instead of being handled.
_Task = tuple[Exchange, "Handler | None", Coding | None, bytes | None]


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body",
        "_body_seen",
        "_body_size",
        "_client",
        "_coding",
        "_context",
        "_deferred",
        "_exchange",
        "_fresh",
        "_go_ahead_due",
        "_handler",
        "_handling_deferred",
        "_headers",
        "_headers_repeated",
        "_headers_repeated_bytes",
        "_held",
        "_is_between",
        "_latest_since",
        "_parser",
        "_paused",
        "_paused_at",
        "_read_bytes",
        "_refusal",
        "_transport",
        "_unread_head",
        "_url",
        "exchanges",
        "since",
        "state",
        "unrouted",
    )

    def __init__(self, context: IngestContext) -> None:
        self._context = context
        self.unrouted = context.unrouted
        self._transport: asyncio.Transport | None = None
        self._client = ""  # once somebody asked for it
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[bytes, bytes] = NO_HEADERS
        self._headers_repeated = 0  # lines whose name was there before
        self._headers_repeated_bytes = 0  # what they, and trailers, have beyond what is in `_headers`
        self._read_bytes = 0  # by the present read
        self._is_between = True  # two requests, or before the first: the parser waits for a request line
        self._fresh: bytes | None = None  # the present read, if it began between requests, until its first head is read
        self._unread_head = -1  # bytes of a head that is not complete, in the reads after the one that it began with
        self._url = b""
        self._body: list[bytes | bytearray] = []  # what has arrived of it
        self._body_size = 0
        self._body_seen = 0  # its size after the read before
        self._held = False  # counted among the bodies that are arriving
        self._latest_since = 0.0  # `since` never gets later than this while the body arrives
        self._coding: Coding | None = None  # of the body that is arriving
        self._exchange: Exchange | None = None  # the request whose body is arriving
        self._handler: Handler | None = None
        self._refusal: bytes | None = None
        self._go_ahead_due = False  # the body waits for a 100, and earlier answers have to leave first
        self._paused = 0
        self._paused_at = 0.0
        self.exchanges: deque[Exchange] = deque()  # whose answers have not left, in the order of their requests
        self._deferred: deque[_Task] | None = None  # those of them that are handled when others are answered
        self._handling_deferred = False
        self.state = IDLE
        self.since = context.now  # when the present state began, or was last seen to move

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        context = self._context
        refusal: responses.Refusal | None = None
        if len(context.connections) >= context.limits.max_connections:
            refusal = responses.TOO_MANY_CONNECTIONS
        elif context.gate is not None:
            refusal = context.gate.opened(self)
        if refusal is None:
            context.connections.add(self)
            # Not at once: uvloop starts to read behind this callback, whatever it says.
            asyncio.get_running_loop().call_soon(context.inflight.admit, self)
        elif len(context.turned_away) < _MAX_TURNED_AWAY:
            context.turned_away.add(self)
            self._refuse_connection(refusal)
        else:
            context.count_refusal(refusal.code)
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_between:
            data = self._take_known(data)
        if data:
            self._parse(data)
        context = self._context
        if context.commit.pending_bytes > context.limits.max_pending:
            context.inflight.check()
            context.inflight.admit(self)

    def eof_received(self) -> bool:
        """Half-closed clients still get the answers that they wait for."""
        if self._exchange is not None:  # its body will never be complete
            self.exchanges.pop().cut_off()
            self._exchange = None
            self._drop_body()
        if self.exchanges:
            if self._transport is not None and self._transport.can_write_eof():
                self.exchanges[-1].closes = True
                self.state = ANSWER
                return True
            # TLS as asyncio has it ends both directions at once: what is being committed is, but the answers are lost.
            self.exchanges.clear()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # Requests that are being committed go on; their answers find nobody.
        self._transport = None
        self.exchanges.clear()
        self._deferred = None
        if self._exchange is not None:
            self._exchange.cut_off()
            self._exchange = None
        self._drop_body()
        context = self._context
        if context.gate is not None:
            context.gate.closed(self)
        context.connections.discard(self)
        context.turned_away.discard(self)
        context.inflight.release(self)

    def pause_writing(self) -> None:
        """The client does not read its answers: take no more of its requests until it does."""
        self.since = self._context.now
        self.pause_reading(ANSWERS_UNREAD)

    def resume_writing(self) -> None:
        self.resume_reading(ANSWERS_UNREAD)
        self._handle_deferred()

    # Requests, whole ones with a head that is known by themselves and all others by the parser

    def _take_known(self, data: bytes) -> bytes:
        """Handles the requests that a read begins with as long as they are whole and their heads known; the rest."""
        context = self._context
        if context.draining:  # answers end connections, which is for the parser
            return data
        known = context.heads.known
        auth = context.auth
        start, size = 0, len(data)
        while start < size and self.state != LINGER:
            limit = start + MAX_HEAD_BYTES
            digits = data.find(LENGTH, start, limit)
            if digits < 0:
                digits = data.find(LENGTH_LOWER, start, limit)
                if digits < 0:
                    break
            digits += LENGTH_BYTES
            stop = data.find(b"\r", digits, digits + MAX_DIGITS + 1)
            if stop < 0:
                break
            end = data.find(b"\r\n\r\n", stop, limit) + 4
            kind = context.exchange_kind
            key = data[start:digits] + data[stop:end]
            head = known.get(key)
            if head is None:
                head = context.heads.but_for_id(key)
                if head is None:
                    break
                kind = context.identified_kind
            length = data[digits:stop]
            if not length.isdigit():
                break
            after = end + int(length)
            if after > size or after - end > context.limits.max_body:
                break
            exchange = kind(self, head.headers, head.method, head.path, head.query)
            exchange.answered = head.answered
            exchange.body = data[end:after]
            self.exchanges.append(exchange)
            self.state = ANSWER
            self.since = context.now
            refusal = auth.refusal(exchange, head.scope) if auth is not None and head.scope else None
            self._complete(exchange, head.handler, head.coding, refusal)
            start = after
        return data[start:] if start else data

    def _parse(self, data: bytes) -> None:
        if self.state == LINGER:
            return
        self._fresh = data if self._is_between else None
        self._read_bytes = len(data)
        try:
            offer = None
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as found:
                offer = found
            if offer is not None:  # not within the handler above: it would become the context of what is raised
                self._decline_upgrades(data, offer)
        except httptools.HttpParserCallbackError as error:
            # A refusal from within a callback; anything else is a bug and ends this connection only.
            cause = error.__context__
            if not isinstance(cause, _Refused):
                raise
            self._refuse_connection(cause.response)
        except httptools.HttpParserError as error:
            reason = str(error) or type(error).__name__
            self._refuse_connection(_malformed(reason))
        else:
            if self.state == BODY:
                self._hold_body()
            elif self.state == HEADER:
                self._count_unread_head(len(data))
        self._fresh = None

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.state == LINGER:  # the last answer has left while the bytes behind its request were being parsed
            raise _Refused(b"")
        self._is_between = False
        self.state = HEADER
        self.since = self._context.now
        self._url = b""
        self._headers = {}
        self._headers_repeated = self._headers_repeated_bytes = 0
        self._unread_head = -1
        self._refusal = None
        self._coding = None

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self._context.limits.max_url:
            limit = self._context.limits.max_url >> 10
            raise _Refused(responses.error(414, "url_too_long", f"the URL exceeds server.max_url_kb = {limit}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:  # a trailer, and nothing here reads trailers
            self._headers_repeated_bytes += len(name) + len(value) + 4
            if self._headers_repeated_bytes > self._context.limits.max_header:
                raise _Refused(self._header_too_large())
            return
        name = name.lower()
        headers = self._headers
        if name in headers:
            # Joined as RFC 9110 §5.2 says; single-valued headers then fail where they are read.
            value = headers[name] + b", " + value
            self._headers_repeated += 1
            self._headers_repeated_bytes += len(name) + 2
            if len(value) > self._context.limits.max_header:
                raise _Refused(self._header_too_large())
        headers[name] = value

    def on_headers_complete(self) -> None:
        context = self._context
        limits = context.limits
        headers = self._headers
        parser = self._parser
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                raise _Refused(responses.NOT_FOUND)
            return
        if self._read_bytes > limits.max_header or self._unread_head >= 0:  # else it cannot be too large
            self._check_header_bytes()
        if len(headers) + self._headers_repeated > limits.max_headers:
            raise _Refused(
                responses.error(
                    431, "header_too_large", f"there are more headers than server.max_headers = {limits.max_headers}"
                )
            )
        # The parser is strict, but for what follows (and for empty lines before a request and more than one blank in
        # its first line, which mislead nobody).
        closes = not parser.should_keep_alive()
        is_http_1_0 = False
        if closes or b"connection" in headers or b"proxy-connection" in headers:  # only 1.1 is kept open by itself
            version = parser.get_http_version()
            is_http_1_0 = version == "1.0"
            if not is_http_1_0 and version != "1.1":
                raise _Refused(_malformed(f"HTTP version {version} is not supported"))
        host = headers.get(b"host")
        if host not in context.hosts:
            self._check_host(host, is_http_1_0)
        if b"transfer-encoding" in headers and (
            is_http_1_0 or headers[b"transfer-encoding"].rstrip(b" \t").lower() != b"chunked"
        ):
            raise _Refused(_malformed("the only Transfer-Encoding is chunked, once, and in HTTP/1.1"))
        path, _, query = self._url.partition(b"?")
        if not path.startswith(b"/"):
            path = _path_of_url(path)
        kind = context.identified_kind if REQUEST_ID in headers else context.exchange_kind
        exchange = kind(self, headers, method, path, query)
        exchange.closes = closes or context.draining
        self._exchange = exchange
        self.exchanges.append(exchange)
        self.state = BODY
        self.since = context.now
        self._body_size = self._body_seen = 0
        route = context.routes.get(path)
        if route is None:
            self._refusal = responses.NOT_FOUND
        else:
            exchange.answered = route.answered
            endpoint = route.endpoints.get(method)
            if endpoint is None:
                self._refusal = route.wrong_method
            else:
                self._handler, scope = endpoint
                if scope and context.auth is not None:
                    self._refusal = context.auth.refusal(exchange, scope)
        length = headers.get(b"content-length")
        if length is not None and int(length) > limits.max_body:
            raise _Refused(self._too_large())
        if b"content-encoding" in headers and self._refusal is None:
            try:
                self._coding = coding_of(headers[b"content-encoding"])
            except UnsupportedEncoding as error:
                self._refusal = responses.error(415, "unsupported_encoding", str(error), _ACCEPT_ENCODING)
        if b"expect" in headers and not is_http_1_0:
            if headers[b"expect"].lower() != b"100-continue":
                raise _Refused(responses.error(417, "expectation_failed", "only Expect: 100-continue is supported"))
            if self._refusal is not None:  # at once, for the body may never come
                raise _Refused(self._refusal)
            self._go_ahead_due = True
            self._give_go_ahead()
        if self._refusal is not None:
            if (length is None or int(length) > _DISCARD_BYTES) and self._has_body():
                raise _Refused(self._refusal)
        elif self._fresh is not None and not closes and parser.get_http_version() == "1.1":
            assert self._handler is not None
            context.heads.learn(
                self._fresh,
                Head(method, path, query, headers, self._handler, scope, self._coding, exchange.answered),
            )
        self._fresh = None

    def on_body(self, body: bytes) -> None:
        self._go_ahead_due = False
        size = self._body_size
        self._body_size = size + len(body)
        if self._body_size > self._context.limits.max_body:
            raise _Refused(self._too_large())
        if self._refusal is not None:
            return
        pieces = self._body
        if len(body) >= _PIECE_BYTES or not pieces:
            pieces.append(body)
        elif type(pieces[-1]) is bytearray:  # chunks may be of one byte each: a list of them would take many times that
            pieces[-1] += body
        else:
            pieces.append(bytearray(body))

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None:  # an offer to upgrade: `_decline_upgrades` follows
            return
        self._exchange = None
        self._go_ahead_due = False  # no body came that it would have been for
        self.state = ANSWER
        pieces = self._body
        if pieces:
            exchange.body = b"".join(pieces)  # of one that is bytes: itself
            self._body = []
        if self._held:
            self._drop_body()
        self._is_between = not exchange.closes
        if self._context.gate is not None:
            self._context.gate.arrived(exchange)
        self._complete(exchange, self._handler, self._coding, self._refusal)

    # Complete requests

    def _complete(
        self, exchange: Exchange, handler: Handler | None, coding: Coding | None, refusal: bytes | None
    ) -> None:
        context = self._context
        context.requests += 1
        exchange.received = perf_counter()
        if len(self.exchanges) > context.limits.max_pipelined or self._paused & ANSWERS_UNREAD:
            if len(self.exchanges) > context.limits.max_pipelined:
                self.pause_reading(PIPELINE_FULL)
            # One read may bring thousands more. Large bodies are not left lying about: they count as bytes in flight.
            if len(exchange.body) <= SMALL_BODY_BYTES:
                if self._deferred is None:
                    self._deferred = deque()
                self._deferred.append((exchange, handler, coding, refusal))
                return
        self._handle(exchange, handler, coding, refusal)

    def _handle(
        self, exchange: Exchange, handler: Handler | None, coding: Coding | None, refusal: bytes | None
    ) -> None:
        if refusal is not None:
            exchange.answer(refusal)
            return
        assert handler is not None
        if coding is not None and exchange.body:
            self._decode(exchange, handler, coding)
            return
        try:
            handler(exchange)
        except Exception as error:
            self.answer_bug(exchange, error)

    def _handle_deferred(self) -> None:
        """Goes on with requests that came while too many were unanswered, unless the client does not read."""
        if self._handling_deferred:  # an answer that was given at once led here again
            return
        self._handling_deferred = True
        while self._deferred and not self._paused & ANSWERS_UNREAD:
            under_way = len(self.exchanges) - len(self._deferred) - (self._exchange is not None)
            if under_way >= self._context.limits.max_pipelined:
                break
            self._handle(*self._deferred.popleft())
        self._handling_deferred = False

    def answer_bug(self, exchange: Exchange, error: Exception) -> None:
        """500, and what it was in the log."""
        context = self._context
        if context.now >= context.next_bug_line:  # a bug on the hot path must not fill the disk with its log
            context.next_bug_line = context.now + 1.0
            log.error(
                "a bug in the handler of %r; answered 500",
                exchange.path,
                exc_info=error,
                extra=exchange.log_fields(),
            )
        exchange.answer(responses.INTERNAL_ERROR)

    def _decode(self, exchange: Exchange, handler: Handler, coding: Coding) -> None:
        """Gives the handler the decoded body: at once, or when the decoding thread is done with it."""
        decoder = Decoder(coding, exchange.body, self._context.limits.max_body)
        exchange.body = b""

        def done(error: Exception | None) -> None:
            if error is None:
                exchange.body = decoder.decoded()
                self._handle(exchange, handler, None, None)
            elif isinstance(error, BadPayload):
                exchange.answer(responses.error(400, "bad_request", str(error)))
            elif isinstance(error, PayloadTooLarge):
                exchange.answer(self._too_large("decoded body"))
            else:
                self.answer_bug(exchange, error)

        try:
            whole = decoder.advance(_INLINE_BYTES)
        except (BadPayload, PayloadTooLarge) as error:
            done(error)
        else:
            if whole:
                done(None)
            else:
                self._context.decoding.add(decoder.encoded_bytes, partial(_decode_to_the_end, decoder), done)

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
            exchange.answered[response[9:12]] += 1
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
        if self._deferred:
            self._handle_deferred()
        if self._paused & PIPELINE_FULL and len(waiting) <= self._context.limits.max_pipelined // 2:
            self.resume_reading(PIPELINE_FULL)

    @property
    def client(self) -> str:
        """The address of who sends; "-" where it has none, or is gone before anybody asked."""
        if not self._client and self._transport is not None:
            self._client = _address_of(self._transport.get_extra_info("peername"))
        return self._client or "-"

    @property
    def announced_bytes(self) -> int:
        """The size of the body that is arriving, as its head says; -1 where it does not, 0 where none arrives."""
        if self._exchange is None:
            return 0
        if b"transfer-encoding" in self._headers:
            return -1
        length = self._headers.get(b"content-length", b"0")
        return int(length) if len(length) <= MAX_DIGITS else 0

    def pause_reading(self, reason: int) -> None:
        if self.state == LINGER:  # what is read is dropped
            return
        if not self._paused and self._transport is not None:
            self._transport.pause_reading()
            self._paused_at = self._context.now
        self._paused |= reason

    def resume_reading(self, reason: int) -> None:
        """Takes one reason away; reading goes on when it was the last."""
        if self._paused & reason:
            self._paused &= ~reason
            if not self._paused and self._transport is not None:
                # The client's time stood still.
                pause = self._context.now - self._paused_at
                self.since += pause
                self._latest_since += pause
                self._transport.resume_reading()

    def expire(self) -> None:
        """The time of the present state is over."""
        transport = self._transport
        if transport is None:
            return
        if self.state in (HEADER, BODY) and not self._paused & ANSWERS_UNREAD:
            if not self._paused:
                self._refuse_connection(responses.REQUEST_TIMEOUT)
            elif self._paused & NO_ROOM and self._context.now - self._paused_at > self._context.limits.body_timeout:
                self.refuse_for_room()
        elif transport.get_write_buffer_size():  # a client that does not read would keep it open for ever
            transport.abort()
        else:
            transport.close()

    @property
    def is_unread(self) -> bool:
        """Whether the client has left so many answers unread that it is not read from any more."""
        return bool(self._paused & ANSWERS_UNREAD)

    def refuse_for_room(self) -> None:
        """Gives up the body that is arriving: the worker holds too much."""
        self._refuse_connection(responses.NO_ROOM)

    def count_refusal(self, response: bytes) -> None:
        if isinstance(response, responses.Refusal):
            self._context.count_refusal(response.code)

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
            exchange = self._context.exchange_kind(self, NO_HEADERS)
            self.exchanges.append(exchange)
        self._exchange = None
        self._drop_body()
        self._context.requests += 1
        self.state = LINGER  # nothing more is read, whatever still has to be answered
        self.since = self._context.now
        exchange.closes = True
        exchange.answer(response)

    def _linger(self) -> None:
        transport = self._transport
        self.state = LINGER
        self.since = self._context.now
        self._deferred = None
        self._exchange = None
        self._drop_body()
        if transport is None:
            return
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()  # TLS reads on by itself until the client has closed too, or ssl_shutdown_timeout is over
        if self._paused:
            self._paused = 0
            transport.resume_reading()

    # Sizes and strictness

    def _hold_body(self) -> None:
        """A read has ended within a body: counts what is held of it, and gives the client time for the next read."""
        context = self._context
        if not self._body_seen:
            self._latest_since = self.since + context.limits.max_body_seconds - context.limits.body_timeout
        if self._body_size > self._body_seen:
            self._body_seen = self._body_size
            self.since = min(context.now, self._latest_since)
        if self._body:
            self._held = True
            context.inflight.hold(self, self._body_size)

    def _drop_body(self) -> None:
        self._body = []
        if self._held:
            self._held = False
            self._context.inflight.release(self)

    def _count_unread_head(self, size: int) -> None:
        """A read has ended within a head, of which the parser may keep any number of bytes until it tells of them."""
        if self._unread_head < 0:
            self._unread_head = 0
            return
        self._unread_head += size
        if self._unread_head > self._context.limits.max_header + _REQUEST_LINE_BYTES:
            self._refuse_connection(self._header_too_large())

    def _check_header_bytes(self) -> None:
        """URL, names and values, each with four for colon, blank and line end: the parser allows nothing else."""
        headers = self._headers
        size = len(self._url) + sum(map(len, headers)) + sum(map(len, headers.values())) + 4 * (len(headers) + 1)
        if size + self._headers_repeated_bytes > self._context.limits.max_header:
            raise _Refused(self._header_too_large())

    def _check_host(self, host: bytes | None, is_http_1_0: bool) -> None:
        """RFC 9112 §3.2: 400 for a request without a Host, with more than one, or with one that is none."""
        if host is None:
            if is_http_1_0:
                return
            raise _Refused(_malformed("there is no Host header"))
        if _HOST.match(host) is None:
            raise _Refused(_malformed("the Host header is given twice or malformed"))
        if len(self._context.hosts) < _HOSTS_KEPT:
            self._context.hosts.add(host)

    def _has_body(self) -> bool:
        return b"transfer-encoding" in self._headers or self._headers.get(b"content-length", b"0") != b"0"

    def _header_too_large(self) -> responses.Refusal:
        limit = self._context.limits.max_header >> 10
        return responses.error(
            431, "header_too_large", f"request line and headers exceed server.max_header_kb = {limit}"
        )

    def _too_large(self, what: str = "body") -> responses.Refusal:
        limit = self._context.limits.max_body >> 20
        return responses.error(413, "body_too_large", f"the {what} exceeds server.max_body_mb = {limit}")


def _address_of(peer: object) -> str:
    """An address as text; of IPv4 in its own way where the socket speaks IPv6."""
    if not isinstance(peer, tuple):  # of a Unix socket
        return ""
    return str(peer[0]).removeprefix("::ffff:")


def _malformed(reason: str) -> responses.Refusal:
    return responses.error(400, "bad_request", f"malformed HTTP request: {reason}")


def _decode_to_the_end(decoder: Decoder) -> None:
    while not decoder.advance(_INLINE_BYTES):
        pass


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
