"""HTTP/1.1 responses as bytes, built once where possible."""

from __future__ import annotations

import re
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

import orjson

from arcpipe.units import KB

# The version of InfluxDB with this API. Clients parse it, so it is not a version of arcpipe.
INFLUXDB_VERSION: Final = "1.8.10"
INFLUXDB_LINES: Final = f"X-Influxdb-Version: {INFLUXDB_VERSION}\r\nX-Influxdb-Build: arcpipe\r\n".encode("ascii")
_INFLUXDB2_PATHS: Final = frozenset((b"/api/v2/write", b"/api/v2/buckets", b"/api/v2/orgs"))
INFLUXDB_PATHS: Final = _INFLUXDB2_PATHS | {
    *(b"/write", b"/api/v3/write_lp", b"/api/v1/write/line-protocol", b"/ping", b"/query"),
}
"""Paths of InfluxDB's clients, whose answers tell its version."""

OTLP_PATHS: Final = frozenset((b"/v1/logs", b"/v1/traces", b"/v1/metrics"))
"""Paths of OTLP, whose errors are messages of the type `google.rpc.Status`."""
HEAD_BYTES: Final = 128
"""Bytes of a response in which its Content-Type is."""
# Senders of OTLP repeat what is answered 429, 502, 503 or 504, and nothing else.
_RETRIED_BY_OTLP: Final = frozenset((408, 507))
# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_RPC_CODES: Final = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 413: 8, 429: 8, 500: 13, 503: 14}
_RPC_UNKNOWN: Final = 2

# Characters of a reason in a header; the body contains all of it.
_REASON_CHARACTERS: Final = 500
# Answers that are kept with their date, as they are always the same, and the bytes of the longest such answer.
_DATED_KEPT: Final = 64
# It includes the status page and /metrics: clients that do not read them share one copy.
_DATED_BYTES: Final = 64 * KB

_INFLUXDB2_CODES: Final = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    413: "request too large",
    415: "unsupported media type",
    429: "too many requests",
    503: "unavailable",
}
# The headers that `json` adds by itself.
_OF_JSON: Final = (b"Content-Type:", b"Content-Length:")


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode("ascii")


def empty(status: int, headers: bytes = b"") -> bytes:
    """Make a response without a body; `headers` are lines, each with its CRLF."""
    # 204 and 304 have no Content-Length (RFC 9110 §8.6).
    length = b"" if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED) else b"Content-Length: 0\r\n"
    return _status_line(status) + headers + length + b"\r\n"


def json(status: int, value: Any, headers: bytes = b"") -> bytes:
    """Make a JSON response; `headers` are lines, each with its CRLF."""
    return body(status, b"application/json", orjson.dumps(value), headers)


def body(status: int, content_type: bytes, content: bytes, headers: bytes = b"") -> bytes:
    """Make a response with a body of any type; `headers` are lines, each with its CRLF."""
    return b"".join(
        (
            _status_line(status),
            b"Content-Type: %b\r\n" % content_type,
            headers,
            b"Content-Length: %d\r\n\r\n" % len(content),
            content,
        )
    )


class Refusal(bytes):
    """An error response with its code, by which refusals are counted."""

    code: str


def error(status: int, code: str, reason: str, headers: bytes = b"") -> Refusal:
    """Make `{"error": reason, "code": slug}`. The reason tells people the fault and its place."""
    return refusal(status, code, {"error": reason, "code": code}, headers)


def refusal(status: int, code: str, value: Any, headers: bytes = b"") -> Refusal:
    """Make an error in another shape; `code` is for counting."""
    response = Refusal(json(status, value, headers))
    response.code = code
    return response


def in_shape_of(path: bytes, response: bytes) -> bytes:
    """Return an error in the shape that the path's clients read.

    Clients of InfluxDB look for the reason in a header; those of InfluxDB 2 for `message` and codes of their own.
    """
    if path not in INFLUXDB_PATHS:
        return response
    head, _, body = response.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    error = orjson.loads(body)
    status = int(status_line[9:12])
    reason = re.sub(r"[^ -~]+", " ", error["error"])[:_REASON_CHARACTERS].encode("ascii")
    headers = [b"%b\r\n" % line for line in lines if not line.startswith(_OF_JSON)]
    if path in _INFLUXDB2_PATHS:
        error["message"] = error["error"]
        error["code"] = _INFLUXDB2_CODES.get(status, error["code"])
    return json(status, error, b"".join((*headers, INFLUXDB_LINES, b"X-Influxdb-Error: %b\r\n" % reason)))


def as_rpc_status(response: bytes, *, is_json: bool) -> bytes:
    """Return an error as senders of OTLP read it: `google.rpc.Status`, and 503 where they should try again."""
    head, _, content = response.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    status = int(status_line[9:12])
    if status in _RETRIED_BY_OTLP:
        status = 503
    reason = orjson.loads(content)["error"]
    code = _RPC_CODES.get(status, _RPC_UNKNOWN)
    headers = b"".join(b"%b\r\n" % line for line in lines if not line.startswith(_OF_JSON))
    if is_json:
        return json(status, {"code": code, "message": reason}, headers)
    text = reason.encode()
    size = bytearray()
    left = len(text)
    while left >= 0x80:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    message = b"".join((b"\x08", bytes([code]), b"\x12", size, text))
    return body(status, b"application/x-protobuf", message, headers)


def with_lines(response: bytes, lines: bytes) -> bytes:
    """Return the same response with further header lines, each with its CRLF."""
    line_end = response.index(b"\r\n") + 2
    more = response[:line_end] + lines + response[line_end:]
    if isinstance(response, Refusal):
        more = Refusal(more)
        more.code = response.code
    return more


def closing(response: bytes) -> bytes:
    """Return the same response with the note that the connection ends."""
    head, end, body = response.partition(b"\r\n\r\n")
    return with_lines(head.replace(b"\r\n" + KEEP_ALIVE.rstrip(), b"") + end + body, b"Connection: close\r\n")


def without_body(response: bytes) -> bytes:
    """Return the answer to HEAD: the headers of GET."""
    return response[: response.index(b"\r\n\r\n") + 4]


class Dated(dict[bytes, bytes]):
    """Answers with the time of their leaving (RFC 9110 §6.6.1), by the answers without it.

    Answers that repeat are made once a second, and looked up after that.
    """

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def set_time(self, seconds: float) -> None:
        """Set the time since the epoch. Call it a few times a second."""
        second = int(seconds)
        if second != self._second or not self._line:
            self._second = second
            self._line = f"Date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")
            self.clear()

    def __missing__(self, response: bytes) -> bytes:
        line_end = response.index(b"\r\n") + 2
        dated = response[:line_end] + self._line + response[line_end:]
        if len(self) < _DATED_KEPT and len(response) <= _DATED_BYTES:
            self[response] = dated
        return dated


KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"  # HTTP/1.0 closes unless the answer says this (RFC 9112 §9.3)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
ACCEPTED: Final = empty(HTTPStatus.ACCEPTED)
NO_CONTENT: Final = empty(HTTPStatus.NO_CONTENT)
NOT_FOUND: Final = error(404, "not_found", "there is nothing at this path")
TOO_MANY_CONNECTIONS: Final = error(
    503, "too_many_connections", "this worker has reached server.max_connections", b"Retry-After: 1\r\n"
)
NO_ROOM: Final = error(
    503,
    "inflight",
    "too many bodies are arriving or waiting (server.max_inflight_mb); nothing was written",
    b"Retry-After: 1\r\n",
)
TOO_MANY_REQUESTS_WAIT: Final = error(
    503,
    "inflight",
    "too many requests that came at once wait for their turn (server.max_inflight_mb)",
    b"Retry-After: 1\r\n",
)
REQUEST_TIMEOUT: Final = error(408, "timeout", "the request did not arrive in time")
INTERNAL_ERROR: Final = error(500, "bug", "a bug in arcpipe; its log has the details, nothing was written")
