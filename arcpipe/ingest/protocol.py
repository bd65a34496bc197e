"""HTTP/1.1 on a raw socket: asyncio's callbacks, then the parser's, then the answers, in the order of events.

A connection reads requests with httptools and hands each to a handler as an `Exchange`. Handlers answer when they
can, in any order; answers leave in the order of the requests. Nothing here knows what a write is.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

import httptools

from arcpipe.codec.content_encoding import ACCEPTED, Coding, Decoder, coding_of
from arcpipe.errors import BadPayload, PayloadTooLarge, UnsupportedEncoding
from arcpipe.ingest import responses
from arcpipe.ingest.background import ClientGone
from arcpipe.ingest.client_address import peer_of
from arcpipe.ingest.exchange import NO_HEADERS, Exchange
from arcpipe.ingest.heads import LENGTH, LENGTH_BYTES, LENGTH_LOWER, MAX_DIGITS, MAX_HEAD_BYTES, Head
from arcpipe.ingest.limits import ANSWERS_UNREAD, LOG_BEHIND, NO_ROOM, PIPELINE_FULL, READ_BYTES, SMALL_BODY_BYTES, TURN
from arcpipe.ingest.linger import LINGER_SECONDS, Linger, is_in_kernel, undelivered_bytes
from arcpipe.ingest.request_ids import HEADER as REQUEST_ID
from arcpipe.ingest.turns import SLICE_SECONDS, SMALL_SECONDS, TURN_SECONDS
from arcpipe.tls import certificate_of

if TYPE_CHECKING:
    from arcpipe.ingest.background import Check
    from arcpipe.ingest.entrance import Surface
    from arcpipe.ingest.router import Handler, Judge
    from arcpipe.ingest.worker import IngestContext
    from arcpipe.tls import Certificate

log = logging.getLogger(__name__)

# A refused request's body up to this size is read to its end, so that the connection can be used again.
_DISCARD_BYTES: Final = 1 << 20

# What a header line has besides name and value: colon, blank, line end.
_LINE_SIGNS: Final = 4
# What a request line has besides its URL, at most: `max_header_kb` does not count it.
_REQUEST_LINE_BYTES: Final = 64
# Bytes that the parser is given at once, at most, unless they are all of one body: it cannot be stopped, and the
# smallest requests and chunks have a few bytes each.
_PARSED_BYTES: Final = 2 << 10
# As much of a chunked body, where the piece before had no more than so many chunks.
_PARSED_CHUNKED_BYTES: Final = 64 << 10
_FEW_CHUNKS: Final = 16
# Bytes. A shorter read is not timed: what it brings takes SMALL_SECONDS at most, and the clock takes time, too.
_SMALL_READ_BYTES: Final = 1 << 10
# A Content-Length of more digits is no size of anything; Python itself refuses to read some thousand of them.
_LENGTH_DIGITS: Final = 19
# An unfinished head takes about this much memory besides its bytes: its objects, and two with a place for each line.
_HEAD_BYTES: Final = 1 << 10
_HEAD_LINE_BYTES: Final = 140
# Heads of unanswered requests may take this much memory on one connection, and one more head; then it is not read.
_WAITING_HEAD_BYTES: Final = 96 << 10

# Of answers that a client does not take, and one more: with more it is not read. The loop's TLS would take 512 kB.
_UNREAD_BYTES: Final = 16 << 10

# Smaller pieces of a body are joined as they arrive, larger ones when all are there.
_PIECE_BYTES: Final = 1024

# Bytes that small pieces are joined to at most: more would be copied again and again as they grow.
_JOINED_PIECE_BYTES: Final = 1 << 20

# Bytes of a body that is joined in the loop: a millisecond's work.
_JOINED_BYTES: Final = 4 << 20

# What may come out of an encoded body in the loop itself: less than a millisecond.
_INLINE_BYTES: Final = 256 << 10

_ACCEPT_ENCODING: Final = f"Accept-Encoding: {ACCEPTED}\r\n".encode("ascii")

# What a connection is waiting for, and so which timeout holds.
IDLE: Final = 0
HEADER: Final = 1
BODY: Final = 2
ANSWER: Final = 3
LINGER: Final = 4
FRESH: Final = 5  # of a client that has sent nothing yet

# A Host field (RFC 9110 §7.2) in the characters of names and addresses; never one that was sent twice, whose two values
# are joined with a comma.
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-fv:.]+\])(?::[0-9]*)?\Z")
# Values that were found good are remembered, up to so many.
_HOSTS_KEPT: Final = 1024

# In place of the parser of a connection that has ended.
_NO_PARSER: Final = httptools.HttpRequestParser(object())

# A complete request: its handler, how its body is encoded, and the refusal that it gets instead of being handled.
_Task = tuple[Exchange, "Handler | None", Coding | None, bytes | None]


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_at_eof",
        "_began",
        "_body",
        "_body_calls",
        "_body_seen",
        "_body_size",
        "_coding",
        "_context",
        "_deferred",
        "_exchange",
        "_fresh",
        "_go_ahead_due",
        "_handler",
        "_handling_deferred",
        "_headers",
        "_held",
        "_is_between",
        "_judge",
        "_latest_since",
        "_length",
        "_linger_for",
        "_parser",
        "_paused",
        "_paused_at",
        "_refusal",
        "_repeated_bytes",
        "_repeated_lines",
        "_rest",
        "_rest_at",
        "_rest_is_between",
        "_seconds",
        "_surface",
        "_trailer_bytes",
        "_transport",
        "_unread_head",
        "_url",
        "_waiting_heads",
        "address",
        "certificate",
        "exchanges",
        "since",
        "state",
        "unrouted",
    )

    def __init__(self, context: IngestContext, surface: Surface | None = None, address: str = "") -> None:
        """Args: surface: the paths of a listener that has its own; address: of the client, where a proxy tells it."""
        self._context = context
        self._surface: Surface = context if surface is None else surface
        self.address = address
        self.certificate: Certificate | None = None  # of the client, once `Auth` has asked for it
        self.unrouted = context.unrouted
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[bytes, bytes] = NO_HEADERS
        self._repeated_lines = 0  # headers of the request so far whose name was there before
        self._repeated_bytes = 0
        self._trailer_bytes = 0
        self._waiting_heads = 0  # memory of heads since all were answered, but for those that are known
        self._is_between = True  # two requests, or before the first: the parser waits for a request line; and no rest
        self._fresh: bytes | None = None  # the present piece, if it began between requests, until its head is read
        # Bytes of a head or trailer that is not complete, in the pieces after the one that it began with.
        self._unread_head = -1
        self._began = 0.0  # perf_counter seconds: when the present read began to be handled
        self._seconds = 0.0  # how long the last read took that was not small
        self._rest = b""  # of a read, for the connection's next turn: from `_rest_at` on
        self._rest_at = 0
        self._rest_is_between = False  # `_is_between` before the rest
        self._at_eof = False  # the client will send nothing more, and there is a rest
        self._url = b""
        self._body: list[bytes | bytearray] = []  # what has arrived of it
        self._body_calls = 0  # of the parser, since it was given the last piece of a chunked body
        self._body_size = 0
        self._body_seen = 0  # its size after the read before
        self._length = -1  # its Content-Length; -1: it is chunked
        self._held = False  # counted among the bodies that are arriving
        self._latest_since = 0.0  # `since` never gets later than this while the body arrives
        self._coding: Coding | None = None  # of the body that is arriving
        self._exchange: Exchange | None = None  # the request whose body is arriving
        self._handler: Handler | None = None
        self._refusal: bytes | None = None
        self._judge: Judge | None = None  # of a head whose body is not whole
        self._go_ahead_due = False  # the body waits for a 100, and earlier answers have to leave first
        self._paused = 0
        self._paused_at = 0.0
        self.exchanges: deque[Exchange] = deque()  # whose answers have not left, in the order of their requests
        self._deferred: deque[_Task] | None = None  # those of them that are handled when others are answered
        self._handling_deferred = False
        self._linger_for: Linger | None = None
        self.state = FRESH
        self.since = context.now  # when the present state began, or was last seen to move

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_UNREAD_BYTES)
        self.address = self.address or peer_of(transport)
        context = self._context
        self.since = context.now  # not the time of the handshake
        refusal: responses.Refusal | None = None
        if len(context.connections) >= context.limits.max_connections:
            refusal = responses.TOO_MANY_CONNECTIONS
        elif context.gate is not None:
            refusal = context.gate.opened(self)
        if refusal is None:
            context.connections.add(self)
        elif len(context.turned_away) < context.limits.max_turned_away:  # further ones are cut off
            context.turned_away.add(self)
            self._refuse_connection(refusal)
        else:
            context.count_refusal(refusal.code)
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        at = self._take_known(data, 0) if self._is_between else 0
        if at < len(data):
            self._go_on(data, at, self._began if at else perf_counter())
        elif at > _SMALL_READ_BYTES and (seconds := perf_counter() - self._began) > SMALL_SECONDS:
            self._end_turn(seconds)
        context = self._context
        if context.commit.pending_bytes > context.inflight.unchecked_bytes:
            context.inflight.check()
            context.inflight.admit(self)

    def eof_received(self) -> bool:
        """Half-closed clients still get the answers that they wait for."""
        if self._rest:  # with requests that have not been handled yet
            if self._transport is not None and self._transport.can_write_eof():
                self._at_eof = True
                return True
            while self._rest and not self._must_stop() and self._context.turns.spent < TURN_SECONDS:
                self._handle_rest()  # TLS ends both directions at once: there will be no other turn
            self._drop_rest()
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
        self._drop_rest()
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

    # Turns

    def _go_on(self, data: bytes, at: int, began: float) -> None:
        """Handles a read from `at` on until the connection's turn is over, and keeps the rest for its next turn."""
        if self.state == LINGER or (self.exchanges and self._is_over):
            self._note_dropped()
            return
        if self._rest:  # TLS may bring more although it was told not to
            rest, at = self._rest, self._rest_at
            self._is_between = self._rest_is_between
            self._drop_rest()
            self._keep(rest[at:] + data, 0)
            return
        size = len(data)
        turn_end = began + (SMALL_SECONDS if self._context.turns.is_used_up else SLICE_SECONDS)
        while not (self._paused and self._must_stop()):
            end = self._piece_end(data, at) if size - at > _PARSED_BYTES else size
            self._parse(data if end - at == size else memoryview(data)[at:end], end == size)
            at = end
            if at < size and self._is_between:
                at = self._take_known(data, at, turn_end)
            if at == size or self._is_deaf:
                break
            if perf_counter() > turn_end:
                self._keep(data, at)
                break
        else:
            self._keep(data, at)
        self._end_turn(perf_counter() - began)

    def _must_stop(self) -> bool:
        """Whether nothing more of a read may be handled now. What has arrived of a body is taken in all cases."""
        if self.state == BODY:
            return bool(self._paused & (PIPELINE_FULL | ANSWERS_UNREAD))
        return bool(self._paused & ~TURN)

    def _piece_end(self, data: bytes, at: int) -> int:
        """Where the piece ends that the parser is given at once: a few small requests, a head, or a body."""
        size = len(data)
        end = at + _PARSED_BYTES
        if self.state != BODY:
            found = data.find(b"\r\n\r\n", at, end)
            return found + 4 if found >= 0 else end
        if self._length >= 0:
            return min(at + max(self._length - self._body_size, _PARSED_BYTES), size)
        # More of a chunked body as long as it has few chunks.
        dense = self._body_calls > _FEW_CHUNKS
        self._body_calls = 0
        return min(at + (_PARSED_BYTES if dense else _PARSED_CHUNKED_BYTES), size)

    def _end_turn(self, seconds: float) -> None:
        """A read, or a part of one, was handled in this time: unless it was short, the next one waits for its turn."""
        self._seconds = seconds
        if seconds > SMALL_SECONDS:
            self._context.turns.charge(seconds)
        if (self._rest or seconds > SLICE_SECONDS / 2) and not self._paused and self.state != LINGER:
            self.pause_reading(TURN)
            self._context.turns.wait(self)

    def take_turn(self) -> float:
        """Goes on with the rest of a read, and lets the next one come; the seconds that both will have taken."""
        if self._paused != TURN:  # it has ended, or waits for something else, whose end gives it a turn again
            self._paused &= ~TURN
            return 0.0
        if self._transport is None or self._transport.is_closing():
            self._drop_rest()
            return 0.0
        expected = max(self._seconds, SLICE_SECONDS)  # the next read will be like the last one
        if not self._rest:
            self.resume_reading(TURN)
            return expected
        self._give_time_back()
        self._handle_rest()
        if not self._rest:
            self.resume_reading(TURN)
            if self._at_eof and not self.eof_received():
                self._transport.close()
            taken, self._seconds = self._seconds, expected
            return taken + expected
        if self._paused == TURN:
            self._context.turns.wait(self)
        else:
            self._paused &= ~TURN
        return self._seconds

    def _handle_rest(self) -> None:
        """Goes on with the rest of a read for the time of one turn."""
        data, at = self._rest, self._rest_at
        self._drop_rest()
        self._is_between = self._rest_is_between
        began = perf_counter()
        if self._is_between:
            at = self._take_known(data, at, began + SLICE_SECONDS)
        self._go_on(data, at, began)

    def _keep(self, data: bytes, at: int) -> None:
        context = self._context
        if not context.has_room_to_keep(len(data)):
            self._refuse_connection(responses.TOO_MANY_REQUESTS_WAIT)
            return
        context.kept_bytes += len(data)
        self._rest, self._rest_at = data, at
        self._rest_is_between, self._is_between = self._is_between, False

    def _drop_rest(self) -> None:
        self._context.kept_bytes -= len(self._rest)
        self._rest = b""

    # Requests, whole ones with a head that is known by themselves and all others by the parser

    def _take_known(self, data: bytes, start: int, turn_end: float = 0.0) -> int:
        """Handles the requests from `start` on as long as they are whole and their heads known, and it is its turn.

        Returns:
            Where the first one starts that was not handled.
        """
        context = self._context
        heads = self._surface.heads
        known = heads.known
        auth = context.auth
        usual_kind = context.exchange_kind
        max_body = context.limits.max_body
        size = len(data)
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
            key = data[start:digits] + data[stop:end]
            kind = usual_kind
            head = known.get(key)
            if head is None:
                head = heads.but_for_id(key)
                if head is None:
                    break
                kind = context.identified_kind
            length = data[digits:stop]
            if not length.isdigit():
                break
            after = end + int(length)
            if after > size or after - end > max_body:
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
            if not turn_end:
                self._began = exchange.received
                turn_end = exchange.received + (SMALL_SECONDS if context.turns.is_used_up else SLICE_SECONDS)
            if self._paused & ~TURN or exchange.received > turn_end:
                break
        return start

    def _parse(self, data: bytes | memoryview, is_last: bool) -> None:
        """Args: is_last: whether nothing of the read follows."""
        state = self.state
        if self._is_between:
            self._fresh = bytes(data)
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
            if isinstance(cause, _Refused):
                self._refuse_connection(cause.response)
            elif not isinstance(cause, _Over):
                self._context.report_bug("the parser's callbacks", cause or error)
                self._refuse_connection(responses.INTERNAL_ERROR)
        except httptools.HttpParserError as error:
            reason = str(error) or type(error).__name__
            self._refuse_connection(_malformed(reason))
        else:
            if self.state == BODY:
                if is_last or state == BODY:  # else its head was just complete, and more follows at once
                    self._hold_body(len(data))
            elif self.state == HEADER:
                self._count_unread_head(len(data))
        self._fresh = None

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._is_deaf:
            raise _Over
        self._is_between = False
        self.state = HEADER
        self.since = self._context.now
        self._url = b""
        self._headers = {}
        self._repeated_lines = self._repeated_bytes = 0
        self._unread_head = -1
        if not self.exchanges:
            self._waiting_heads = 0
        self._refusal = None
        self._judge = None
        self._coding = None

    def on_url(self, url: bytes) -> None:
        self._url += url
        limits = self._context.limits
        if len(self._url) > limits.max_url:
            raise _Refused(
                responses.error(414, "url_too_long", f"the URL exceeds server.max_url_kb = {limits.max_url >> 10}")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:  # a trailer, and nothing here reads trailers
            self._trailer_bytes += len(name) + len(value) + _LINE_SIGNS
            if self._trailer_bytes > self._context.limits.max_header:
                raise _Refused(self._header_too_large())
            return
        name = name.lower()
        headers = self._headers
        if name in headers:
            self._repeated_lines += 1
            self._repeated_bytes += len(name) - 2  # of the name, but for what joins the values
            # Joined as RFC 9110 §5.2 says; single-valued headers then fail where they are read.
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        context = self._context
        limits = context.limits
        headers = self._headers
        parser = self._parser
        method = parser.get_method()
        if self._held:
            self._drop_body()
        if parser.should_upgrade():
            if method == b"CONNECT":
                raise _Refused(responses.NOT_FOUND)
            return
        lines_sent = len(headers) + self._repeated_lines
        head_bytes = _head_bytes(self._url, headers, lines_sent) + self._repeated_bytes
        if head_bytes > limits.max_header or lines_sent > limits.max_headers:
            raise _Refused(self._head_refusal(lines_sent))
        self._waiting_heads += head_bytes + _HEAD_LINE_BYTES * lines_sent
        self._trailer_bytes = self._unread_head = 0
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
        lines = context.origins.lines(method, path, headers) if context.origins is not None else b""
        if is_http_1_0 and not closes:
            lines += responses.KEEP_ALIVE
        exchange: Exchange
        if lines or REQUEST_ID in headers:
            exchange = context.identified_kind(self, headers, method, path, query, lines)
        else:
            exchange = context.exchange_kind(self, headers, method, path, query)
        exchange.closes = closes or context.draining
        self._exchange = exchange
        self.exchanges.append(exchange)
        length = self._length = self._content_length(headers.get(b"content-length"))
        self.state = BODY
        self.since = context.now
        self._body_size = self._body_seen = 0
        route = self._surface.routes.get(path)
        if route is None:
            self._refusal = responses.NOT_FOUND
        else:
            exchange.answered = route.answered
            endpoint = route.endpoints.get(method)
            if endpoint is None:
                self._refusal = route.wrong_method
            else:
                self._handler, scope, self._judge, guard = endpoint
                if scope and context.auth is not None:
                    self._refusal = context.auth.refusal(exchange, scope)
                if self._refusal is None and guard is not None:
                    self._refusal = guard(exchange)
        if length > limits.max_body:
            raise _Refused(self._too_large())
        if context.inflight.is_full and self._refusal is None and self._has_body():
            is_small = 0 <= length <= SMALL_BODY_BYTES and not context.inflight.is_overfull
            if not is_small and length <= READ_BYTES:  # what is larger waits for room
                self._refusal = responses.NO_ROOM
        if b"content-encoding" in headers and self._refusal is None:
            try:
                self._coding = coding_of(headers[b"content-encoding"])
            except UnsupportedEncoding as error:
                self._refusal = responses.error(415, "unsupported_encoding", str(error), _ACCEPT_ENCODING)
        if b"expect" in headers and not is_http_1_0:
            if headers[b"expect"].lower() != b"100-continue":
                raise _Refused(responses.error(417, "expectation_failed", "only Expect: 100-continue is supported"))
            self._judge_head(exchange)
            if self._refusal is not None:  # at once, for the body may never come
                raise _Refused(self._refusal)
            self._go_ahead_due = True
            self._give_go_ahead()
        if self._refusal is not None:
            if self._is_worth_an_end():
                raise _Refused(self._refusal)
        elif self._fresh is not None and not closes and not lines and parser.get_http_version() == "1.1":
            assert self._handler is not None
            self._surface.heads.learn(
                self._fresh,
                Head(method, path, query, headers, self._handler, scope, self._coding, exchange.answered),
            )
        self._fresh = None

    def on_body(self, body: bytes) -> None:
        self._go_ahead_due = False
        self._body_calls += 1
        size = self._body_size
        self._body_size = size + len(body)
        if self._body_size > self._context.limits.max_body:
            raise _Refused(self._too_large())
        if self._refusal is not None:
            return
        pieces = self._body
        if len(body) >= _PIECE_BYTES or not pieces:
            pieces.append(body)
        elif type(pieces[-1]) is bytearray and len(pieces[-1]) < _JOINED_PIECE_BYTES:
            pieces[-1] += body  # chunks may be of one byte each: a list of them would take many times that
        else:
            pieces.append(bytearray(body))

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None:  # an offer to upgrade: `_decline_upgrades` follows
            return
        self._exchange = None
        self._headers = NO_HEADERS  # many bytes, while thousands of connections may be idle
        self._url = b""
        self._go_ahead_due = False  # no body came that it would have been for
        self.state = ANSWER
        pieces, self._body = self._body, []
        if self._held:
            self._drop_body()
        self._is_between = not exchange.closes
        if self._waiting_heads > _WAITING_HEAD_BYTES:
            self.pause_reading(PIPELINE_FULL)
        if self._context.gate is not None:
            self._context.gate.arrived(exchange, self._body_size if self._refusal is None else 0)
        if self._body_size > _JOINED_BYTES and pieces:
            self._join_apart(exchange, pieces)
            return
        if pieces:
            exchange.body = b"".join(pieces)  # of one that is bytes: itself
        self._complete(exchange, self._handler, self._coding, self._refusal)

    def _join_apart(self, exchange: Exchange, pieces: list[bytes | bytearray]) -> None:
        """Has a body joined on a thread: 100 MB would hold up the loop for some 50 ms."""
        handler, coding, refusal = self._handler, self._coding, self._refusal

        def join(_: Check) -> None:
            # Of nothing but `bytes`: then, and only then, others run meanwhile.
            exchange.body = b"".join([piece if type(piece) is bytes else bytes(piece) for piece in pieces])
            pieces.clear()

        def done(error: Exception | None) -> None:
            if error is None:
                self._complete(exchange, handler, coding, refusal)
            elif isinstance(error, ClientGone):
                exchange.cut_off()
            else:
                self.answer_bug(exchange, error)

        self._context.encoding.add(self, self._body_size, join, done)

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
        self._context.report_bug(f"the handler of {exchange.path!r}", error, exchange.log_fields())
        exchange.answer(responses.INTERNAL_ERROR)

    def _decode(self, exchange: Exchange, handler: Handler, coding: Coding) -> None:
        """Gives the handler the decoded body: at once, or when the decoding thread is done with it."""
        context = self._context
        decoder = Decoder(coding, exchange.body, context.limits.max_body)
        exchange.body = b""

        def to_the_end(_: Check) -> None:
            while not decoder.advance(_INLINE_BYTES):
                pass
            exchange.body = decoder.decoded()

        def done(error: Exception | None) -> None:
            if error is None:
                self._handle(exchange, handler, None, None)
            elif isinstance(error, ClientGone):
                exchange.cut_off()
            elif isinstance(error, BadPayload):
                exchange.answer(responses.error(400, "bad_request", str(error)))
            elif isinstance(error, PayloadTooLarge):
                exchange.answer(self._too_large("decoded body"))
            else:
                self.answer_bug(exchange, error)

        try:
            whole = context.turns.spent < TURN_SECONDS and decoder.advance(_INLINE_BYTES)
        except (BadPayload, PayloadTooLarge) as error:
            done(error)
        else:
            if whole:
                exchange.body = decoder.decoded()
                done(None)
            else:
                context.decoding.add(self, decoder.encoded_bytes, to_the_end, done)

    # Answers, and the end

    def flush(self) -> None:
        """Sends the answers that are ready, in the order of their requests."""
        transport = self._transport
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
                self._linger()
                return
            transport.write(response)
        if not waiting and self.state == ANSWER:
            self.state = IDLE
            self.since = self._context.now
            if self._paused & LOG_BEHIND:  # nothing of it waits any more: it may ask for something else, or write again
                self.resume_reading(LOG_BEHIND)
        if self._go_ahead_due:
            self._give_go_ahead()
        if self._deferred:
            self._handle_deferred()
        if self._paused & PIPELINE_FULL and len(waiting) <= self._context.limits.max_pipelined // 2:
            if not waiting or waiting[0] is self._exchange:  # all that have come whole are answered
                self._waiting_heads = 0
            if self._waiting_heads <= _WAITING_HEAD_BYTES:
                self.resume_reading(PIPELINE_FULL)

    @property
    def announced_bytes(self) -> int:
        """The size of the body that is arriving, as its head says; -1 where it does not, 0 where none is taken."""
        if self._exchange is None or self._length > self._context.limits.max_body:
            return 0
        if b"transfer-encoding" in self._headers:
            return -1
        return max(self._length, 0)

    def pause_reading(self, reason: int) -> None:
        if self.state == LINGER:  # what is read is dropped
            return
        if not self._paused and self._transport is not None:
            self._transport.pause_reading()
            self._paused_at = self._context.now
        self._paused |= reason

    def resume_reading(self, reason: int, by_turn: bool = False) -> None:
        """Takes one reason away; reading goes on when it was the last, with what has been read already first.

        Args:
            by_turn: whether that waits for the connection's turn, as others go on at the same moment.
        """
        if self._paused & reason:
            self._paused &= ~reason
            if not self._paused and self._transport is not None:
                if self._rest or by_turn:
                    self._paused = TURN
                    self._context.turns.wait(self)
                else:
                    self._give_time_back()
                    self._transport.resume_reading()

    def _give_time_back(self) -> None:
        """The client's time stood still while it was not read from."""
        context = self._context
        pause = context.now - self._paused_at
        self._paused_at = context.now
        self.since += pause
        self._latest_since += pause

    def expire(self) -> None:
        """The time of the present state is over."""
        transport = self._transport
        if transport is None or (self._rest and not self.is_unread):  # its turn will come
            return
        if self.state in (HEADER, BODY) and not self._paused & ANSWERS_UNREAD:
            if not self._paused:
                self._refuse_connection(responses.REQUEST_TIMEOUT)
            elif self._paused & NO_ROOM and self._context.now - self._paused_at > self._context.limits.body_timeout:
                self.refuse_for_room()
        elif self.state in (FRESH, IDLE) and self._paused & (LOG_BEHIND | NO_ROOM) and not self.is_unread:
            pass  # its request may have come long ago: nobody reads it
        elif self.state == LINGER and self._lingers_on(transport):
            pass
        elif transport.get_write_buffer_size():  # a client that does not read would keep it open for ever
            transport.abort()
        else:
            transport.close()

    def client_of(self, headers: dict[bytes, bytes]) -> str:
        """Whose request it is that has these headers."""
        forwarded = self._context.forwarded
        return self.address if forwarded is None else forwarded.client(self.address, headers)

    def peer_certificate(self) -> Certificate | None:
        """The client's certificate, where TLS has asked for one and found it good."""
        if self.certificate is None and self._transport is not None:
            self.certificate = certificate_of(self._transport.get_extra_info("peercert"))
        return self.certificate

    @property
    def _is_over(self) -> bool:
        """Whether the last request has come that is answered: all behind it is dropped (RFC 9112 §9.6)."""
        last = self.exchanges[-1] if self.exchanges else None
        return last is not None and last.closes and last is not self._exchange

    @property
    def _is_deaf(self) -> bool:
        """Whether what the client still sends is dropped."""
        return self.state == LINGER or (bool(self.exchanges) and self._is_over)

    def _note_dropped(self) -> None:
        if self._linger_for is not None:
            self._linger_for.note_dropped(self._context.now)

    @property
    def is_unread(self) -> bool:
        """Whether the client has left so many answers unread that it is not read from any more."""
        return bool(self._paused & ANSWERS_UNREAD)

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended, so that no answer finds anybody."""
        return self._transport is None

    @property
    def brings_large_body(self) -> bool:
        """Whether a body arrives that is more than small."""
        return self._exchange is not None and max(self._length, self._body_size) > SMALL_BODY_BYTES

    @property
    def has_posted(self) -> bool:
        """Whether something that it has posted is not answered yet."""
        arriving = self._exchange
        return any(exchange.method == b"POST" and exchange is not arriving for exchange in self.exchanges)

    @property
    def holds_unread(self) -> bool:
        """Whether it keeps requests of a client that does not read its answers."""
        return bool(self._rest) and self.is_unread

    def give_up(self) -> None:
        """Ends a connection whose client does not read: others need what is kept of it."""
        self._drop_rest()
        if self._transport is not None:
            self._transport.abort()

    def refuse_for_room(self) -> None:
        """Gives up the body that is arriving: the worker holds too much."""
        self._refuse_connection(responses.NO_ROOM)
        self._drop_body()  # of one that is over, too: nobody will ask for what came behind its last request

    def count_refusal(self, response: bytes) -> None:
        if isinstance(response, responses.Refusal):
            self._context.count_refusal(response.code)

    def finish(self) -> None:
        """The worker is going down: end the connection with its last answer."""
        if self.exchanges:
            self.exchanges[-1].closes = True
        elif self._rest:  # its first request is marked as the last when its turn comes
            return
        elif self._transport is not None and self.state != LINGER:
            self._transport.close()

    def _give_go_ahead(self) -> None:
        """Sends the 100 that the body at hand waits for, once all earlier requests are answered."""
        if self.exchanges and self.exchanges[0] is self._exchange and self._transport is not None:
            self._go_ahead_due = False
            self._transport.write(responses.CONTINUE)

    def _decline_upgrades(self, data: bytes | memoryview, offer: httptools.HttpParserUpgrade) -> None:
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
        if self.state == LINGER or self._is_over:  # ended already
            return
        exchange = self._exchange
        if exchange is None:
            # Once it has told the URL, the parser knows the method: an answer to HEAD has no body, whatever it says.
            method = self._parser.get_method() if self.state == HEADER and self._url else b""
            exchange = self._context.exchange_kind(self, NO_HEADERS, method)
            self.exchanges.append(exchange)
        self._exchange = None
        self._drop_head()
        self._drop_body()
        self._drop_rest()
        self._context.requests += 1
        self.state = LINGER  # nothing more is read, whatever still has to be answered
        self.since = self._context.now
        exchange.closes = True
        exchange.answer(response)

    def _linger(self) -> None:
        transport = self._transport
        is_cut_short = self.state == LINGER  # a refused request, of which more may come
        self.state = LINGER
        self.since = self._context.now
        self._deferred = None
        self._exchange = None
        self._drop_head()
        self._drop_body()
        self._drop_rest()
        if transport is None:
            return
        context = self._context
        sending = context.limits.body_timeout if self not in context.turned_away else LINGER_SECONDS
        self._linger_for = Linger(self.since, context.limits.max_body_seconds, sending)
        if transport.can_write_eof():
            transport.write_eof()
        elif not is_cut_short and is_in_kernel(transport):
            transport.close()  # TLS reads on by itself until the client has closed too, or ssl_shutdown_timeout is over
        if self._paused:
            self._paused = 0
            transport.resume_reading()

    def _lingers_on(self, transport: asyncio.Transport) -> bool:
        if self._linger_for is None:  # earlier answers leave first, and the client is slow to take them
            return self._context.now - self.since <= self._context.limits.keep_alive
        left = undelivered_bytes(transport)
        return self._linger_for.goes_on(left, self._context.now, self._context.limits.keep_alive)

    @property
    def is_finished(self) -> bool:
        """Whether the client has got all answers that it waits for."""
        if self.exchanges or self.state not in (FRESH, IDLE, LINGER):
            return False
        return self._transport is None or not undelivered_bytes(self._transport)

    # Sizes and strictness

    def _hold_body(self, size: int) -> None:
        """A piece has ended within a body: counts what is held of it, and gives the client time for the next read."""
        context = self._context
        if self._exchange is not None and self._judge is not None:
            self._judge_head(self._exchange)
            if self._refusal is not None:
                self._drop_body()
                if self._is_worth_an_end():
                    self._refuse_connection(self._refusal)
                    return
        if not self._body_seen:
            self._latest_since = self.since + context.limits.max_body_seconds - context.limits.body_timeout
        if self._body_size > self._body_seen:
            self._body_seen = self._body_size
            self._unread_head = 0
            self.since = min(context.now, self._latest_since)
        else:  # of a trailer, of which the parser may keep any number of bytes, too
            self._unread_head += size
            if self._unread_head > context.limits.max_header + _REQUEST_LINE_BYTES:
                self._refuse_connection(self._header_too_large())
                return
        if self._body or self._unread_head > _PARSED_BYTES:
            self._held = True
            context.inflight.hold(self, self._unread_head + (self._body_size if self._body else 0))

    def _drop_body(self) -> None:
        self._body = []
        if self._held:
            self._held = False
            self._context.inflight.release(self)

    def _count_unread_head(self, size: int) -> None:
        """A piece has ended within a head, of which the parser may keep any number of bytes until it tells of them."""
        if self._unread_head < 0:
            self._unread_head = 0
        else:
            self._unread_head += size
            if self._unread_head > self._context.limits.max_header + _REQUEST_LINE_BYTES:
                self._refuse_connection(self._header_too_large())
                return
        limits = self._context.limits
        lines = len(self._headers) + self._repeated_lines
        head_bytes = _head_bytes(self._url, self._headers, lines) + self._repeated_bytes
        if head_bytes > limits.max_header or lines > limits.max_headers:
            self._refuse_connection(self._head_refusal(lines))
            return
        size = _HEAD_BYTES + _HEAD_LINE_BYTES * lines + max(head_bytes, self._unread_head)
        self._held = True
        self._context.inflight.hold(self, size)

    def _head_refusal(self, lines: int) -> responses.Refusal:
        """The refusal of a head that is larger than it may be, in bytes or lines."""
        limits = self._context.limits
        if lines > limits.max_headers:
            reason = f"there are more headers than server.max_headers = {limits.max_headers}"
            return responses.error(431, "header_too_large", reason)
        return self._header_too_large()

    def _drop_head(self) -> None:
        """Lets go of what has come of a head, and of what the parser keeps of it: nothing more is read."""
        self._headers = NO_HEADERS
        self._url = b""
        self._fresh = None
        self._parser = _NO_PARSER

    def _content_length(self, field: bytes | None) -> int:
        """The number in a Content-Length field; -1 if there is none."""
        if field is None:
            return -1
        if len(field) > _LENGTH_DIGITS:
            raise _Refused(_malformed(f"Content-Length has more than {_LENGTH_DIGITS} digits"))
        return int(field)

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

    def _judge_head(self, exchange: Exchange) -> None:
        """Asks once whether the body that is still to come should be taken at all."""
        judge, self._judge = self._judge, None
        if judge is not None and self._refusal is None:
            self._refusal = judge(exchange)

    def _is_worth_an_end(self) -> bool:
        """Whether the body of a refused request is too large to be read and dropped."""
        return b"transfer-encoding" in self._headers or self._length > _DISCARD_BYTES

    def _has_body(self) -> bool:
        return b"transfer-encoding" in self._headers or self._length > 0

    def _header_too_large(self) -> responses.Refusal:
        limit = self._context.limits.max_header >> 10
        return responses.error(
            431, "header_too_large", f"request line and headers exceed server.max_header_kb = {limit}"
        )

    def _too_large(self, what: str = "body") -> responses.Refusal:
        limit = self._context.limits.max_body >> 20
        return responses.error(413, "body_too_large", f"the {what} exceeds server.max_body_mb = {limit}")


def _head_bytes(url: bytes, headers: dict[bytes, bytes], lines: int) -> int:
    return len(url) + sum(map(len, headers)) + sum(map(len, headers.values())) + _LINE_SIGNS * (lines + 1)


def _malformed(reason: str) -> responses.Refusal:
    return responses.error(400, "bad_request", f"malformed HTTP request: {reason}")


def _path_of_url(url: bytes) -> bytes:
    """The path in a target that is a whole URL, which RFC 9112 §3.2.2 has every server accept; else what it was."""
    scheme, separator, rest = url.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return url
    return b"/" + rest.partition(b"/")[2]


class _Over(Exception):
    """Raised within a parser callback: nobody is to be answered any more."""


class _Refused(Exception):
    """Raised within a parser callback: the connection ends with this response."""

    def __init__(self, response: bytes) -> None:
        super().__init__()
        self.response = response
