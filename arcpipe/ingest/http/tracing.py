"""Exchanges with an id, and with the fields of the access log.

A worker makes such exchanges if a setting asks for it, or if a client sends an id of its own. All others are plain.
"""

from __future__ import annotations

from collections import defaultdict
from time import perf_counter
from typing import Any, ClassVar, Final

from arcpipe.ingest.http import request_ids, responses
from arcpipe.ingest.http.access_log import AccessLog, CombinedLine, Line, printable
from arcpipe.ingest.http.exchange import Exchange, Peer
from arcpipe.ingest.http.request_ids import RequestIds


class IdentifiedExchange(Exchange):
    """A request with an id, which its answer may repeat in `X-Request-Id`."""

    __slots__ = ("id_is_told", "lines", "request_id")

    ids: ClassVar[RequestIds | None] = None  # None: only clients make ids
    tells_made: ClassVar[bool] = False  # whether answers show ids that were made here

    def __init__(
        self,
        connection: Peer,
        headers: dict[bytes, bytes],
        method: bytes = b"",
        path: bytes = b"",
        query: bytes = b"",
        answered: defaultdict[bytes, int] | None = None,
    ) -> None:
        Exchange.__init__(self, connection, headers, method, path, query, answered)
        self.lines = b""  # further lines of the answer's header, each with its CRLF
        own = headers.get(request_ids.HEADER)
        if own is not None and request_ids.is_harmless(own):
            self.request_id = own
            self.id_is_told = True
        else:
            self.request_id = self.ids.new() if self.ids is not None else b""
            self.id_is_told = self.tells_made and self.ids is not None

    def log_fields(self) -> dict[str, dict[str, str]] | None:
        return {"fields": {"request_id": self.request_id.decode("ascii")}} if self.request_id else None

    def answer(self, response: bytes) -> None:
        lines = self.lines
        if self.id_is_told:
            lines += b"X-Request-Id: %b\r\n" % self.request_id
        Exchange.answer(self, responses.with_lines(response, lines) if lines else response)


class LoggedExchange(IdentifiedExchange):
    """A request that gets a line in the access log. Times are perf_counter seconds."""

    __slots__ = ("agent", "appended", "body_bytes", "database", "records", "referer", "sender", "started")

    access_log: ClassVar[AccessLog]

    def __init__(
        self,
        connection: Peer,
        headers: dict[bytes, bytes],
        method: bytes = b"",
        path: bytes = b"",
        query: bytes = b"",
        answered: defaultdict[bytes, int] | None = None,
    ) -> None:
        IdentifiedExchange.__init__(self, connection, headers, method, path, query, answered)
        self.started = perf_counter()
        self.sender = self.client  # found now, because the headers are dropped before the wait for the disk
        self.database: str | None = None
        self.records = 0
        self.body_bytes = 0
        self.appended = 0.0  # the time of its place in a group
        if self.access_log.is_combined:
            self.referer = headers.get(b"referer", b"-")
            self.agent = headers.get(b"user-agent", b"-")

    def answer(self, response: bytes) -> None:
        status = response[9:12]
        if self.access_log.takes(status):
            self._log(int(status), len(response))
        IdentifiedExchange.answer(self, response)

    def cut_off(self) -> None:
        """Log 499, which nginx writes for a client that went away."""
        if self.access_log.takes(b"499"):
            self._log(499, 0)

    def _log(self, status: int, answer_bytes: int) -> None:
        access_log = self.access_log
        now = perf_counter()
        placed = self.appended or now
        whole = self.received or now
        common = (
            access_log.now(),
            access_log.worker,
            self.sender,
            self.token,
            self.request_id.decode("ascii"),
            self.method.decode("ascii") or "-",
            printable(self.path) or "-",
            self.database,
            # 400 includes partial writes, whose good lines were written; a failed group wrote nothing.
            self.records if status <= 400 else 0,
            self.body_bytes or len(self.body),
            status,
            int((placed - whole) * 1e6) / 1000,
            int((now - placed) * 1e6) / 1000,
            int((now - self.started) * 1e6) / 1000,
        )
        if access_log.is_combined:
            access_log.add(CombinedLine(*common, answer_bytes, printable(self.referer), printable(self.agent)))
        else:
            access_log.add(Line(*common))


Kinds = tuple[type[Exchange], type[IdentifiedExchange]]
"""The usual kind of exchange, and the kind of a request whose client sends an id, or whose answer has more lines."""


def kinds(ids: RequestIds | None, tells_made: bool, access_log: AccessLog | None) -> Kinds:
    """Make the kinds of exchanges that a worker uses.

    Args:
        ids: makes ids where clients send none; None if nobody wants them.
        tells_made: whether answers show such an id.
    """
    shared: dict[str, Any] = {"__slots__": (), "ids": ids, "tells_made": tells_made}
    if access_log is not None:
        logged = type("LoggedExchange", (LoggedExchange,), {**shared, "access_log": access_log})
        return logged, logged
    identified = type("IdentifiedExchange", (IdentifiedExchange,), shared)
    return (Exchange if ids is None else identified), identified


PLAIN_KINDS: Final = kinds(None, False, None)
"""Of a worker without an access log, and without ids of its own."""
