"""`POST /api/v1/ingest/{measurement}`: records as JSON, CSV, Arrow or Parquet, whose fields the sender names.

The parameters are read from the query, and where it has none from headers: some senders can only set these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes

from arcpipe.codec.arrow_ipc.check import Checked, check_stream
from arcpipe.codec.arrow_ipc.parquet import parquet_stream
from arcpipe.codec.columns import TIME, Encoded
from arcpipe.codec.effort import Check
from arcpipe.codec.envelope import ArrowBody, arrow_front
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.records import csv_lines, json_array, json_lines
from arcpipe.codec.records.report import Records
from arcpipe.codec.records.roles import Roles, read_roles
from arcpipe.codec.time_units import UNIT_NS
from arcpipe.errors import BadPayload, UnknownFormat
from arcpipe.ingest.endpoints.targets import Target, TargetKey, Targets
from arcpipe.ingest.endpoints.write import COSTLY_INLINE_BYTES, INLINE_BYTES, WriteEndpoints
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.exchange import DATABASE, Exchange
from arcpipe.ingest.http.router import WRITE, Table

PATH: Final = "/api/v1/ingest/{measurement}"
_STEM_BYTES: Final = PATH.index("{")

_CONTENT_TYPE: Final = b"content-type"
# The formats by the media types that senders use, without their parameters.
FORMATS: Final[dict[bytes, str]] = {
    **dict.fromkeys((b"application/x-ndjson", b"application/ndjson", b"application/jsonl"), "ndjson"),
    **dict.fromkeys((b"application/x-jsonlines", b"application/json-lines", b"application/stream+json"), "ndjson"),
    b"application/json": "json",
    b"text/csv": "csv",
    b"application/vnd.apache.arrow.stream": "arrow",
    b"application/vnd.apache.parquet": "parquet",
}
_KNOWN: Final = ("ndjson", "json", "csv", "arrow", "parquet")
_TYPED: Final = ("arrow", "parquet")  # formats whose columns have types

# The parameters that headers may give, too.
_BY_HEADER: Final[dict[str, bytes]] = {
    name: b"x-arc-" + name.replace("_", "-").encode("ascii")
    for name in ("format", "time_field", "measurement_field", "tag_fields", "types", "precision", "accept_partial")
}
_NO_STREAM: Final = memoryview(b"")
_ARROW: Final = 2  # as in `Encoded`
_RULES: Final = {precision: TimeRule(precision) for precision in (None, *UNIT_NS)}


class _Encode(Protocol):
    def __call__(self, body: bytes, check: Check, *, roles: Roles, rule: TimeRule) -> Records: ...


_ENCODERS: Final[dict[str, _Encode]] = {
    "ndjson": json_lines.encode,
    "json": json_array.encode,
    "csv": csv_lines.encode,
}


class RecordTargets(Targets):
    """Targets of requests that name the roles of their fields."""

    def _key(self, exchange: Exchange) -> TargetKey:
        headers = exchange.headers
        given = [headers.get(header) for header in (DATABASE, _CONTENT_TYPE, *_BY_HEADER.values())]
        return exchange.query, *given, exchange.path

    def _read(self, exchange: Exchange) -> Target:
        headers = exchange.headers
        parameters = {
            name: _text(headers[header], f"header '{header.decode('ascii')}'")
            for name, header in _BY_HEADER.items()
            if header in headers
        }
        parameters |= exchange.parameters()
        measurement = _text(unquote_to_bytes(exchange.path[_STEM_BYTES:]), "the measurement in the path")
        names = ("time_field", "measurement_field", "tag_fields", "types")
        roles = read_roles(measurement, *[parameters.get(name, "") for name in names])
        format_ = _format(parameters.get("format", ""), headers.get(_CONTENT_TYPE, b""))
        if format_ in _TYPED and (roles.types or roles.measurement_field):
            raise BadPayload("parameters 'types' and 'measurement_field' are not for Arrow and Parquet")
        return self._make(parameters, headers.get(DATABASE))._replace(format=format_, roles=roles)


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadPayload(f"{where} is not UTF-8") from None


def _format(named: str, content_type: bytes) -> str:
    """Return the format of a body.

    Raises:
        BadPayload: the one that is named is not known.
        UnknownFormat: none is named, and the media type tells none.
    """
    if named:
        if named not in _KNOWN:
            raise BadPayload(f"parameter 'format': '{named[:80]}' is not one of {', '.join(_KNOWN)}")
        return named
    found = FORMATS.get(content_type.partition(b";")[0].strip().lower())
    if found is None:
        raise UnknownFormat(
            "this path takes the Content-Type application/x-ndjson, application/json, text/csv, "
            "application/vnd.apache.arrow.stream or application/vnd.apache.parquet, "
            f"or a parameter 'format' ({', '.join(_KNOWN)}); nothing was written"
        )
    return found


class RecordEndpoints:
    """The handler of records whose fields the sender names."""

    def __init__(self, writes: WriteEndpoints, max_body: int) -> None:
        """Make the endpoints.

        Args:
            max_body: bytes of a stream once it is decompressed.
        """
        self._writes = writes
        self._max_body = max_body

    def routes(self) -> Table:
        """Return the router's entries."""
        takes_view = self._writes.tells_of_targets(lambda target: target.format in _TYPED, RecordTargets)
        return {("POST", PATH): (self._handler(), WRITE, self._writes.judge(None, RecordTargets), None, takes_view)}

    def _handler(self) -> Callable[[Exchange], None]:
        writes = self._writes

        max_body = self._max_body

        def encode(body: bytes | memoryview, check: Check, target: Target) -> Records:
            assert target.roles is not None
            rule = _RULES[target.precision]
            if target.format not in _TYPED:
                return _ENCODERS[target.format](bytes(body), check, roles=target.roles, rule=rule)
            stream = parquet_stream(body, max_body, check) if target.format == "parquet" else body
            checked = check_stream(stream, max_body, check, roles=target.roles, rule=rule)
            return Records(_encode_stream(stream, checked, target.roles), [], 0)

        def settle(exchange: Exchange, target: Target, records: Records) -> None:
            encoded = records.encoded
            if not records.errors:
                if encoded is not None:
                    writes.append(exchange, target, encoded, responses.ACCEPTED)
                else:
                    exchange.answer(responses.ACCEPTED)
            elif encoded is not None and target.accept_partial:
                writes.append(exchange, target, encoded, _bad_records(records, encoded.records))
            else:
                writes.refuse(exchange, _bad_records(records, 0))

        return writes.handler(None, encode, settle, RecordTargets, _inline_bytes)


def _inline_bytes(target: Target) -> int:
    """Return the bytes of a body that may be encoded in the loop."""
    return INLINE_BYTES if target.format == "arrow" else COSTLY_INLINE_BYTES


def _encode_stream(stream: bytes | memoryview, checked: Checked, roles: Roles) -> Encoded | None:
    """Make a stream the body of an entry; None if it has no rows."""
    if not checked.rows:
        return None
    front = ArrowBody(
        roles.measurement,
        checked.rows,
        _NO_STREAM,
        checked.bytes,
        tuple(checked.tags) or None,
        None if roles.time == TIME else roles.time,
    )
    return Encoded(_ARROW, stream, checked.rows, arrow_front(front, len(stream)))


def _bad_records(records: Records, written: int) -> responses.Refusal:
    """Make the answer to a body with bad records, of which `written` good ones are written."""
    bad = len(records.errors) + records.more_errors
    first = records.errors[0]
    what = f"partial write: {written} records were written, {bad} were not" if written else "nothing was written"
    answer: dict[str, Any] = {
        "error": f"{what}; line {first.line}: {first.reason}",
        "code": "bad_request",
        "written": written,
        "refused": bad,
        "data": [
            {"line_number": error.line, "error_message": error.reason, "original_line": error.text}
            for error in records.errors
        ],
    }
    return responses.refusal(400, "bad_request", answer)
