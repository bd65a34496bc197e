"""Endpoints for clients of InfluxDB 1, 2 and 3: line protocol in each generation's dialect, /ping, and /query.

The generations agree on the lines, and differ in the answers to bad ones. Of a body with good and bad lines, the good
ones are written first. So the answer 400 to a partial write means that the rest is on disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from arcpipe.codec.effort import Check
from arcpipe.codec.line_protocol.body import Lines, encode
from arcpipe.codec.line_protocol.grammar import UNITS, Escapes, Unit
from arcpipe.errors import BadPayload
from arcpipe.ingest.endpoints.influx_lists import find_buckets, find_organizations
from arcpipe.ingest.endpoints.targets import Target, check_database
from arcpipe.ingest.endpoints.write import WriteEndpoints
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.exchange import Exchange, parse_parameters
from arcpipe.ingest.http.router import OPEN, WRITE, Handler, Judge, Table
from arcpipe.units import KB

_NO_CONTENT: Final = responses.empty(204, responses.INFLUXDB_LINES)  # to a write that is on disk, and to a ping
_VERBOSE_PONG: Final = responses.json(200, {"version": responses.INFLUXDB_VERSION}, responses.INFLUXDB_LINES)

_MAX_QUERY_BYTES: Final = 64 * KB
_FORM: Final = b"application/x-www-form-urlencoded"
_NO_ANSWERS: Final = "arcpipe answers no queries; it knows CREATE DATABASE and SHOW DATABASES"

# One statement of InfluxQL and the semicolon after it. Possessive, so that no text takes more than linear time.
_STATEMENT: Final = re.compile(
    r"""
    \s*+ (?:
        CREATE \s++ DATABASE \s++ (?: IF \s++ NOT \s++ EXISTS \s++ )?+
        (?: "(?P<quoted> (?: [^"\\] | \\. )*+ )" | (?P<bare> [A-Za-z_] \w*+ ) )
        (?: \s++ WITH \s (?: [^;"] | " (?: [^"\\] | \\. )*+ " )*+ )?+
        | SHOW \s++ DATABASES
    ) \s*+ (?: ; | \Z )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL | re.ASCII,
)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


# The unit of a body's timestamps by the envelope's word. Of those without one, and in nanoseconds, all are in range.
_UNITS: Final[dict[str | None, Unit | None]] = {None: None, "ns": None}
_UNITS.update((word, unit) for word, unit in UNITS.items() if word != "ns")


class Dialect(NamedTuple):
    """How a generation of InfluxDB reads bodies, and answers those that are not written, or not whole."""

    precision: str | None  # of requests that name none
    escapes: Escapes  # of its lines
    empty: bytes | None  # the refusal of a body without bytes; None: it is accepted
    no_lines: bytes | None  # of a body with nothing but comments and blank lines
    bad_lines: Callable[[Lines, bool], bytes]  # the answer where lines are bad; whether good ones may be written


class InfluxEndpoints:
    """Handlers of the paths that InfluxDB's clients use."""

    def __init__(self, writes: WriteEndpoints) -> None:
        self._writes = writes

    def routes(self) -> Table:
        """Return the router's entries for them."""
        return {
            ("POST", "/write"): self._write(V1),
            ("POST", "/api/v2/write"): self._write(V2),
            ("POST", "/api/v3/write_lp"): self._write(V3),
            ("POST", "/api/v1/write/line-protocol"): self._write(V1),
            ("GET", "/api/v2/buckets"): (find_buckets, WRITE),
            ("GET", "/api/v2/orgs"): (find_organizations, WRITE),
            ("GET", "/ping"): (ping, OPEN),
            ("GET", "/query"): (query, WRITE),
            ("POST", "/query"): (query, WRITE),
        }

    def _write(self, dialect: Dialect) -> tuple[Handler, str, Judge]:
        return self._lines(dialect), WRITE, self._writes.judge(dialect.precision)

    def _lines(self, dialect: Dialect) -> Handler:
        """Make a handler for bodies in line protocol."""
        writes = self._writes

        def encode_lines(body: bytes, check: Check, target: Target) -> Lines:
            return encode(body, check, escapes=dialect.escapes, unit=_UNITS[target.precision])

        def settle(exchange: Exchange, target: Target, lines: Lines) -> None:
            encoded = lines.encoded
            if not lines.errors:
                if encoded is not None:
                    writes.append(exchange, target, encoded, _NO_CONTENT)
                elif (refusal := dialect.no_lines if exchange.body else dialect.empty) is not None:
                    writes.refuse(exchange, refusal)
                else:
                    exchange.answer(_NO_CONTENT)
            elif encoded is not None and target.accept_partial:
                writes.append(exchange, target, encoded, dialect.bad_lines(lines, True))
            else:
                writes.refuse(exchange, dialect.bad_lines(lines, target.accept_partial))

        return writes.handler(dialect.precision, encode_lines, settle)


def _refusal(reason: str) -> bytes:
    return responses.error(400, "bad_request", reason)


# Bad lines


def _explanation(lines: Lines, partial: bool) -> str:
    """Word bad lines as InfluxDB 1 does, by which its clients recognise a partial write, plus the line numbers."""
    text = "\n".join(f"unable to parse '{error.text}': {error.reason} (line {error.line})" for error in lines.errors)
    if lines.more_errors:
        text += f"\nand {lines.more_errors} more lines"
    if lines.encoded is None or not partial:
        return text
    return f"partial write: {text} dropped={len(lines.errors) + lines.more_errors}"


def _v1_bad_lines(lines: Lines, partial: bool) -> bytes:
    return _refusal(_explanation(lines, partial))


def _v2_bad_lines(lines: Lines, partial: bool) -> bytes:
    text = _explanation(lines, partial)
    return responses.refusal(400, "bad_request", {"error": text, "code": "bad_request", "line": lines.errors[0].line})


def _v3_bad_lines(lines: Lines, partial: bool) -> bytes:
    data = [
        {"error_message": error.reason, "line_number": error.line, "original_line": error.text}
        for error in lines.errors
    ]
    if partial:
        return responses.refusal(400, "bad_request", {"error": "partial write of line protocol occurred", "data": data})
    return responses.refusal(400, "bad_request", {"error": "parsing failed for write_lp endpoint", "data": data[0]})


_NO_POINTS: Final = _refusal("writing requires points")
_EMPTY_WRITE: Final = _refusal("incoming write was empty")

# To try its connection, Home Assistant sends InfluxDB 1 a body without lines, and InfluxDB 2 one without bytes.
V1: Final = Dialect("ns", "v1", empty=None, no_lines=None, bad_lines=_v1_bad_lines)
V2: Final = Dialect("ns", "v1", empty=_NO_POINTS, no_lines=None, bad_lines=_v2_bad_lines)
V3: Final = Dialect(None, "v3", empty=_EMPTY_WRITE, no_lines=_EMPTY_WRITE, bad_lines=_v3_bad_lines)


# /ping and /query


def ping(exchange: Exchange) -> None:
    """Answer with the version in headers; with `verbose`, in a body, too."""
    try:
        verbose = exchange.parameters().get("verbose", "")
    except BadPayload as error:
        exchange.answer(_refusal(str(error)))
        return
    exchange.answer(_NO_CONTENT if verbose in ("", "0", "false") else _VERBOSE_PONG)


def query(exchange: Exchange) -> None:
    """Accept CREATE DATABASE, because the first write makes a database; refuse any other query."""
    exchange.answer(_answer_query(exchange))


def _answer_query(exchange: Exchange) -> bytes:
    try:
        parameters = exchange.parameters()
        if exchange.headers.get(b"content-type", b"").lower().startswith(_FORM) and exchange.body:
            if len(exchange.body) > _MAX_QUERY_BYTES:
                raise BadPayload(f"a query of more than {_MAX_QUERY_BYTES} bytes")
            parameters |= parse_parameters(bytes(exchange.body))
    except BadPayload as error:
        return _refusal(str(error))
    text = parameters.get("q", "").strip()
    if not text:
        return _refusal('missing required parameter "q"')
    results: list[dict[str, Any]] = []
    position = 0
    while position < len(text):
        statement = _STATEMENT.match(text, position)
        if statement is None:
            return _refusal(f"error parsing query: {_NO_ANSWERS}")
        results.append({"statement_id": len(results), **_result(statement, exchange.databases)})
        position = statement.end()
    return responses.json(200, {"results": results}, responses.INFLUXDB_LINES)


def _result(statement: re.Match[str], allowed: frozenset[str] | None) -> dict[str, Any]:
    quoted, bare = statement["quoted"], statement["bare"]
    if quoted is None and bare is None:
        # Only the store knows the databases. Clients ask in order to create one that is missing.
        return {"series": [{"name": "databases", "columns": ["name"]}]}
    try:
        name = check_database(bare if quoted is None else _ESCAPED.sub(r"\1", quoted), "CREATE DATABASE")
    except BadPayload as error:
        return {"error": str(error)}
    if allowed is not None and name not in allowed:
        return {"error": f"this token is not for the database '{name}'"}
    return {}
