"""Parsing the requests of one connection with httptools, from the first byte of a head until the body is complete.

Requests with known heads do not come here (`reading.py`). A request that is refused while it arrives ends its
connection, unless the rest of its body is small enough to be read and dropped.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Final

import httptools

from arcpipe.codec.content_encoding import ACCEPTED, coding_of
from arcpipe.errors import UnsupportedEncoding
from arcpipe.ingest.http import head_checks, keys, responses
from arcpipe.ingest.http.bodies import JOINED_BYTES, Pieces, add_piece, join_apart
from arcpipe.ingest.http.direct_body import DIRECT_BYTES, PLAIN_BYTES, DirectBody
from arcpipe.ingest.http.exchange import DATABASE, NO_HEADERS
from arcpipe.ingest.http.flow_control import PIPELINE_FULL, SMALL_BODY_BYTES
from arcpipe.ingest.http.head_checks import LENGTH_DIGITS, LINE_SIGNS, Refused, head_bytes
from arcpipe.ingest.http.limits import READ_BYTES
from arcpipe.ingest.http.outlines import Head
from arcpipe.ingest.http.request_ids import HEADER as REQUEST_ID
from arcpipe.ingest.http.states import ANSWER, BODY, HEADER, LINGER
from arcpipe.units import KB, MB

if TYPE_CHECKING:
    from arcpipe.ingest.http.context import IngestContext, Surface
    from arcpipe.ingest.http.exchange import Exchange
    from arcpipe.ingest.http.link import Link
    from arcpipe.ingest.http.router import Handler, Judge, TakesView

# Bytes that the parser gets at once, at most, unless they belong to one body: it cannot be stopped, and the smallest
# requests and chunks have a few bytes each.
PARSED_BYTES: Final = 2 * KB
# Bytes of a chunked body that it gets at once, if the previous piece had at most _FEW_CHUNKS.
_PARSED_CHUNKED_BYTES: Final = 64 * KB
_FEW_CHUNKS: Final = 16
# Bytes of a refused request's body up to which it is read and dropped, so that the connection can be used again.
_DISCARD_BYTES: Final = MB
# Bytes of a request line besides its URL, at most; `max_header_kb` does not include them.
_REQUEST_LINE_BYTES: Final = 64
# Bytes of memory that an incomplete head takes besides its own: its objects, and two objects for each line.
_HEAD_BYTES: Final = KB
_HEAD_LINE_BYTES: Final = 140
# Bytes of memory for heads of unanswered requests on one connection, above which reading pauses.
WAITING_HEAD_BYTES: Final = 96 * KB

_ACCEPT_ENCODING: Final = f"Accept-Encoding: {ACCEPTED}\r\n".encode("ascii")
# Placeholders: for the parser of a connection that has ended, and for the head between two requests.
_NO_PARSER: Final = httptools.HttpRequestParser(object())
_NO_HEAD: Final = Head(b"", b"", b"", NO_HEADERS, None, "", None, defaultdict(int))


class RequestParser:
    """Parses the requests of one connection, and counts the bytes held of an incomplete one."""

    __slots__ = (
        # Of the connection.
        *("_connection", "_context", "_fresh", "_parser", "_surface", "is_between", "waiting_head_bytes"),
        # Of a head that is being read.
        *("_has_head", "_repeated_bytes", "_repeated_lines", "_trailer_bytes", "_unread_bytes", "headers", "url"),
        # Of a request whose head is complete.
        *("_head", "_judge", "_refusal", "_takes_view", "awaits_go_ahead", "latest_since", "length"),
        # Of its body.
        *("_calls", "_held", "_pieces", "_seen", "direct", "is_plain", "size"),
    )

    def __init__(self, connection: Link, context: IngestContext, surface: Surface) -> None:
        self._connection = connection
        self._context = context
        self._surface = surface
        self._parser = httptools.HttpRequestParser(self)
        self._fresh: bytes | None = None  # a piece that began between requests, until its head is read
        self.is_between = True  # two requests, or before the first: a request line is next
        self.waiting_head_bytes = 0  # memory of parsed heads since all were answered

        self.url = b""
        self.headers: dict[bytes, bytes] = NO_HEADERS
        self._has_head = False  # it is complete; further lines belong to a trailer
        self._repeated_lines = 0  # headers with the name of an earlier one
        self._repeated_bytes = 0
        self._trailer_bytes = 0
        # Bytes of an incomplete head or trailer, in the pieces after its first.
        self._unread_bytes = -1

        self._head = _NO_HEAD
        self._refusal: bytes | None = None
        self._judge: Judge | None = None  # until the body is complete, or a 100 asked for it
        self._takes_view: TakesView | None = None  # of the endpoint
        self.awaits_go_ahead = False  # the body waits for a 100, and earlier answers have to leave first
        self.length = 0  # of the body that arrives, by its head; -1: it is chunked
        self.latest_since = 0.0  # the latest that the connection's `since` may be while the body arrives

        self._pieces: Pieces = []  # of the body, so far
        self._calls = 0  # of `on_body` since the parser got the last piece of a chunked body
        self.size = 0  # bytes of the body that have arrived
        self._seen = 0  # `size` after the read before
        self._held = False  # counted among the bodies that are arriving
        self.is_plain = False  # the rest of the body passes the parser by
        self.direct: DirectBody | None = None  # takes the place of `_pieces`

    # The connection's side

    def piece_end(self, data: bytes, at: int) -> int:
        """Find the end of the next piece for the parser: a few small requests, a head, or a body."""
        size = len(data)
        end = at + PARSED_BYTES
        if self._connection.state != BODY:
            found = data.find(b"\r\n\r\n", at, end)
            return found + 4 if found >= 0 else end
        if self.is_plain:
            return min(at + self.length - self.size, size)
        if self.length >= 0:
            return min(at + max(self.length - self.size, PARSED_BYTES), size)
        # More of a chunked body as long as it has few chunks.
        dense = self._calls > _FEW_CHUNKS
        self._calls = 0
        return min(at + (PARSED_BYTES if dense else _PARSED_CHUNKED_BYTES), size)

    def feed(self, data: bytes | memoryview, is_last: bool) -> None:
        """Parse a piece.

        Args:
            is_last: whether nothing of the read follows.
        """
        connection = self._connection
        state = connection.state
        if self.is_plain:
            self.take_plain(data)
            return
        if self.is_between:
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
            # Either a refusal from a callback, or a bug, which ends this connection only.
            cause = error.__context__
            if isinstance(cause, Refused):
                connection.refuse(cause.response)
            elif not isinstance(cause, _Over):
                self._context.report_bug("the parser's callbacks", cause or error)
                connection.refuse(responses.INTERNAL_ERROR)
        except httptools.HttpParserError as error:
            connection.refuse(head_checks.malformed(str(error) or type(error).__name__))
        else:
            if connection.state == BODY:
                if self.length > PLAIN_BYTES:
                    self._pass_by()
                if is_last or state == BODY:  # else its head was just complete, and more follows at once
                    self._hold_body(len(data))
            elif connection.state == HEADER:
                self._hold_head(len(data))
        self._fresh = None

    def take_plain(self, data: bytes | memoryview) -> None:
        """Take bytes of a body that passes the parser by; none of them may follow its end."""
        if self._refusal is not None:
            pass
        elif self.direct is not None:
            self.direct.add(data)
        else:
            add_piece(self._pieces, data if type(data) is bytes else bytes(data))
        self.count_plain(len(data))

    def count_plain(self, size: int) -> None:
        """Count bytes of such a body, which is handled once it is complete."""
        self.awaits_go_ahead = False
        self.size += size
        if self.size < self.length:
            self._hold_body(size)
            return
        self.is_plain = False
        self._parser = httptools.HttpRequestParser(self)  # the other one waits for the body
        try:
            self.on_message_complete()
        except Exception as error:  # a bug, which ends this connection only
            self._context.report_bug("the end of a body", error)
            self._connection.refuse(responses.INTERNAL_ERROR)

    def method_so_far(self) -> bytes:
        """Return the method of an incomplete head; empty while it is unknown."""
        # The parser knows the method by the time of the URL.
        return self._parser.get_method() if self._connection.state == HEADER and self.url else b""

    def stop(self) -> None:
        """Drop the present request and the parser: nothing more is read."""
        self._clear_head()
        self._fresh = None
        self._parser = _NO_PARSER
        self.is_plain = False
        self.drop_body()

    def drop_body(self) -> None:
        """Drop what has come of the present body."""
        self._pieces = []
        self._leave_direct()
        if self._held:
            self._held = False
            self._context.inflight.release(self._connection)

    # The parser's side: callbacks, in the order of events

    def on_message_begin(self) -> None:
        connection = self._connection
        exchanges = connection.exchanges
        if connection.state == LINGER or (exchanges and exchanges[-1].closes):  # `is_deaf`, without calls
            raise _Over
        self.is_between = False
        connection.state = HEADER
        connection.since = self._context.now
        self.url = b""
        self.headers = {}
        self._repeated_lines = self._repeated_bytes = 0
        self._has_head = False
        self._unread_bytes = -1
        if not exchanges:
            self.waiting_head_bytes = 0
        self._refusal = None
        self._judge = None

    def on_url(self, url: bytes) -> None:
        self.url += url
        limits = self._context.limits
        if len(self.url) > limits.max_url:
            raise Refused(head_checks.url_too_long(limits))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:  # a trailer, which is ignored
            self._trailer_bytes += len(name) + len(value) + LINE_SIGNS
            if self._trailer_bytes > self._context.limits.max_header:
                raise Refused(head_checks.header_too_large(self._context.limits))
            return
        name = name.lower()
        value = value.rstrip()  # the parser leaves blanks and tabs there, and takes no other white space
        headers = self.headers
        if name in headers:
            self._repeated_lines += 1
            self._repeated_bytes += len(name) - 2  # of the name, minus the two signs that join the values
            # Joined by RFC 9110 §5.2. A single-valued header then fails where it is read; a database's name may have
            # commas, but no slash.
            value = headers[name] + (b"//" if name == DATABASE else b", ") + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        context, parser, headers = self._context, self._parser, self.headers
        method = parser.get_method()
        if self._held:
            self.drop_body()
        if parser.should_upgrade():  # `_decline_upgrades` follows
            if method == b"CONNECT":
                raise Refused(responses.NOT_FOUND)
            return
        lines_sent = len(headers) + self._repeated_lines
        size = head_bytes(self.url, headers, lines_sent) + self._repeated_bytes
        limits = context.limits
        if size > limits.max_header or lines_sent > limits.max_headers:
            raise Refused(head_checks.size_refusal(limits, lines_sent))
        self.waiting_head_bytes += size + _HEAD_LINE_BYTES * lines_sent
        self._has_head = True
        self._trailer_bytes = self._unread_bytes = 0
        closes = not parser.should_keep_alive()
        is_http_1_0 = False
        says_connection = b"connection" in headers or b"proxy-connection" in headers
        if closes or says_connection:  # 1.0 is kept open only on request
            is_http_1_0 = head_checks.is_http_1_0(parser.get_http_version())
        if headers.get(b"host") not in context.hosts:
            head_checks.check_host(headers, is_http_1_0, context.hosts)
        if b"transfer-encoding" in headers:
            head_checks.check_transfer_encoding(headers[b"transfer-encoding"], is_http_1_0)
        path, _, query = self.url.partition(b"?")
        if not path.startswith(b"/"):
            path = head_checks.path_of_url(path)
        origins = self._surface.origins
        lines = origins.lines(method, path, headers) if origins is not None else b""
        if is_http_1_0 and not closes:
            lines += responses.KEEP_ALIVE
        exchange = self._enter(method, path, query, lines)
        exchange.closes = closes or context.draining
        if self.length > limits.max_body:
            raise Refused(head_checks.body_too_large(limits))
        if self._refusal is None and (b"content-encoding" in headers or context.inflight.is_full):
            self._look_at_body(headers)
        if b"expect" in headers and not is_http_1_0:
            self._meet_expectation(exchange, headers[b"expect"])
        if self._refusal is not None:
            if self._is_worth_an_end():
                raise Refused(self._refusal)
        elif (
            self._fresh is not None
            and not (closes or says_connection or lines)  # heads with such fields are never learned
            and parser.get_http_version() == "1.1"
        ):
            self._surface.heads.learn(self._fresh, self._head)
        self._fresh = None

    def on_body(self, body: bytes) -> None:
        self.awaits_go_ahead = False
        self.size += len(body)
        if self.length < 0:  # chunked; any other length was judged with the head
            self._calls += 1
            if self.size > self._context.limits.max_body:
                raise Refused(head_checks.body_too_large(self._context.limits))
        if self._refusal is None:
            if self._pieces:
                add_piece(self._pieces, body)
            else:
                self._pieces.append(body)

    def on_message_complete(self) -> None:
        connection = self._connection
        exchange = connection.arriving
        if exchange is None:  # an offer to upgrade: `_decline_upgrades` follows
            return
        connection.arriving = None
        connection.state = ANSWER
        head, refusal, size = self._head, self._refusal, self.size
        pieces, self._pieces = self._pieces, []
        if self.direct is not None:
            exchange.body = self.direct.whole()
            self._leave_direct()
        self.headers, self.url = NO_HEADERS, b""  # as `_clear_head`
        self._head = _NO_HEAD
        self.awaits_go_ahead = False  # no body came, so nothing waits for it
        if self._held:
            self.drop_body()
        self.is_between = not exchange.closes
        if self.waiting_head_bytes > WAITING_HEAD_BYTES:
            connection.pause_reading(PIPELINE_FULL)
        if self._context.gate is not None:
            self._context.gate.arrived(exchange, size if refusal is None else 0)
        if size > JOINED_BYTES and pieces:
            join_apart(self._context, exchange, pieces, size, partial(connection.complete, exchange, head, refusal))
            return
        if pieces:
            exchange.body = b"".join(pieces)  # of a single one: itself
        connection.complete(exchange, head, refusal)

    # A complete head

    def _enter(self, method: bytes, path: bytes, query: bytes, lines: bytes) -> Exchange:
        """Find the endpoint, and have the connection make the exchange.

        Args:
            lines: further lines of the answer's header, which handlers do not know.
        """
        context, connection, headers = self._context, self._connection, self.headers
        self.size = self._seen = 0
        handler: Handler | None = None
        scope, answered, guard = "", connection.unrouted, None
        length = headers.get(b"content-length", b"0")
        is_length = len(length) <= LENGTH_DIGITS
        if is_length:  # else it goes no further than the door, which keeps an exchange for the answer
            self.length = -1 if b"transfer-encoding" in headers else int(length)
            route = self._surface.find(path)
            if route is None:
                self._refusal = responses.NOT_FOUND
            else:
                answered = route.answered
                endpoint = route.endpoints.get(method)
                if endpoint is None:
                    self._refusal = route.wrong_method
                else:
                    handler, scope, self._judge, guard, self._takes_view = endpoint
        else:
            self.length = 0
        head = self._head = Head(method, path, query, headers, handler, scope, None, answered)
        exchange: Exchange
        if lines or REQUEST_ID in headers:
            identified, refusal = connection.take(head, context.identified_kind, None)
            identified.lines = lines
            exchange = identified
        else:
            exchange, refusal = connection.take(head, context.exchange_kind, None)
        if not is_length:
            raise Refused(head_checks.NO_LENGTH)
        if keys.HEADER in headers:
            exchange.key = keys.plain(headers[keys.HEADER])  # empty: the endpoint reads it, or refuses it
        if refusal is None and guard is not None:
            refusal = guard(exchange)
        if refusal is not None:
            self._refusal = refusal
        if not self.length and self._judge is not None and b"content-length" not in headers:
            # Nobody can tell where its body ends, so the rest of the connection means nothing.
            raise Refused(self._refusal or head_checks.LENGTH_REQUIRED)
        return exchange

    def _look_at_body(self, headers: dict[bytes, bytes]) -> None:
        """Refuse a body without memory for it, or with an unknown encoding."""
        length, inflight = self.length, self._context.inflight
        if length and inflight.is_full:
            is_small = 0 <= length <= SMALL_BODY_BYTES and not inflight.is_overfull
            if not is_small and length <= READ_BYTES:  # larger ones wait for memory
                self._refusal = responses.NO_ROOM
                return
        if b"content-encoding" in headers:
            try:
                self._head.coding = coding_of(headers[b"content-encoding"])
            except UnsupportedEncoding as error:
                self._refusal = responses.error(415, "unsupported_encoding", str(error), _ACCEPT_ENCODING)

    def _meet_expectation(self, exchange: Exchange, expected: bytes) -> None:
        """Ask for a body that waits for a 100. Raises Refused if the body is refused already."""
        if expected.lower() != b"100-continue":
            raise Refused(responses.error(417, "expectation_failed", "only Expect: 100-continue is supported"))
        self._judge_head(exchange)
        if self._refusal is not None:  # at once, because the body may never come
            raise Refused(self._refusal)
        self.awaits_go_ahead = True
        self._connection.give_go_ahead()

    def _judge_head(self, exchange: Exchange) -> None:
        """Have the endpoint judge the head, once, before its body is accepted."""
        judge, self._judge = self._judge, None
        if judge is not None and self._refusal is None:
            self._refusal = judge(exchange)

    def _is_worth_an_end(self) -> bool:
        """Return whether the body of a refused request is too large to be read and dropped."""
        return self.length < 0 or self.length > _DISCARD_BYTES

    def _clear_head(self) -> None:
        """Drop a head: thousands of connections may be idle, and must not keep one each."""
        self.headers = NO_HEADERS
        self.url = b""
        self._head = _NO_HEAD
        self.length = 0

    # A body of known length

    def _pass_by(self) -> None:
        """Have the rest of the present body pass the parser by, into memory of its own if its endpoint takes a view."""
        self.is_plain = True
        exchange, inflight = self._connection.arriving, self._context.inflight
        if (
            exchange is None
            or self._takes_view is None
            or self._refusal is not None
            or self._head.coding is not None
            or self.length <= DIRECT_BYTES
            or not self._takes_view(exchange)
            or not inflight.announce(self.length)
        ):
            return
        try:
            self.direct = DirectBody(self.length)
        except MemoryError:  # no address space: pieces may still find room
            inflight.arrived(self.length)
            return
        for piece in self._pieces:  # that came with the head
            self.direct.add(piece)
        self._pieces = []

    def _leave_direct(self) -> None:
        """Let go of the memory of a body."""
        if self.direct is not None:
            self._context.inflight.arrived(self.direct.length)
            self.direct = None
            self._connection.receive_pieces()

    # Incomplete requests at the end of a piece

    def _hold_body(self, size: int) -> None:
        """Count the bytes held of an incomplete body, and renew the client's time if it has sent some."""
        context, connection = self._context, self._connection
        if connection.arriving is not None and self._judge is not None:
            self._judge_head(connection.arriving)
            if self._refusal is not None:
                self.drop_body()
                if self._is_worth_an_end():
                    connection.refuse(self._refusal)
                    return
        if not self._seen:
            self.latest_since = connection.since + context.limits.max_body_seconds - context.limits.body_timeout
        if self.size > self._seen:
            self._seen = self.size
            self._unread_bytes = 0
            connection.since = min(context.now, self.latest_since)
        elif not self._count_unread(size):  # of a trailer, or of chunk sizes, which the parser keeps
            return
        has_bytes = self.size > 0 and (bool(self._pieces) or self.direct is not None)
        if has_bytes or self._unread_bytes > PARSED_BYTES:
            self._held = True
            context.inflight.hold(connection, self._unread_bytes + (self.size if has_bytes else 0))

    def _hold_head(self, size: int) -> None:
        """Count the bytes held of an incomplete head; refuse it if it is too large."""
        if self._unread_bytes < 0:
            self._unread_bytes = 0
        elif not self._count_unread(size):
            return
        context, connection = self._context, self._connection
        lines = len(self.headers) + self._repeated_lines
        head_size = head_bytes(self.url, self.headers, lines) + self._repeated_bytes
        limits = context.limits
        if head_size > limits.max_header or lines > limits.max_headers:
            connection.refuse(head_checks.size_refusal(limits, lines))
            return
        self._held = True
        held = _HEAD_BYTES + _HEAD_LINE_BYTES * lines + max(head_size, self._unread_bytes)
        context.inflight.hold(connection, held)

    def _count_unread(self, size: int) -> bool:
        """Count bytes that the parser may keep before a callback; return False after refusing too many."""
        self._unread_bytes += size
        limits = self._context.limits
        if self._unread_bytes <= limits.max_header + _REQUEST_LINE_BYTES:
            return True
        self._connection.refuse(head_checks.header_too_large(limits))
        return False

    # Offers

    def _decline_upgrades(self, data: bytes | memoryview, offer: httptools.HttpParserUpgrade) -> None:
        """Go on in HTTP/1.1, as RFC 9110 §7.8 allows, with the same request without the offer.

        llhttp is done with HTTP once it has seen an offer, so a new parser reads the head again, and what follows it.
        """
        rest = memoryview(data)
        while True:
            rest = rest[offer.args[0] :]
            version = self._parser.get_http_version().encode("ascii")
            head = [b"%b %b HTTP/%b" % (self._parser.get_method(), self.url, version)]
            head += [b"%b: %b" % header for header in self.headers.items() if header[0] != b"upgrade"]
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(b"\r\n".join([*head, b"", b""]))
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as following:
                offer = following
            else:
                return


class _Over(Exception):
    """Raised within a parser callback: no further request gets an answer."""
