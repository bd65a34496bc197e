"""Whole HTTP/1.1 responses as bytes, built once where they can be."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import orjson

INFLUXDB2_WRITE: Final = b"/api/v2/write"
_INFLUXDB2_CODES: Final = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    413: "request too large",
    415: "unsupported media type",
    429: "too many requests",
    503: "unavailable",
}
# The headers that `json` makes by itself.
_OF_JSON: Final = (b"Content-Type:", b"Content-Length:")


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode("ascii")


def empty(status: int, headers: bytes = b"") -> bytes:
    """A response without a body. 204 and 304 have no Content-Length by RFC 9110 §8.6; `headers` are whole lines."""
    length = b"" if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED) else b"Content-Length: 0\r\n"
    return _status_line(status) + headers + length + b"\r\n"


def json(status: int, value: Any, headers: bytes = b"") -> bytes:
    """A JSON response; `headers` are whole lines, each with its CRLF."""
    return body(status, b"application/json", orjson.dumps(value), headers)


def body(status: int, content_type: bytes, content: bytes, headers: bytes = b"") -> bytes:
    """A response with a body of any type; `headers` are whole lines, each with its CRLF."""
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
    """An error response that knows its code, by which refusals are counted."""

    code: str


def error(status: int, code: str, reason: str, headers: bytes = b"") -> Refusal:
    """`{"error": reason, "code": slug}`. The reason says what was wrong and where; it is meant for a person."""
    return refusal(status, code, {"error": reason, "code": code}, headers)


def refusal(status: int, code: str, value: Any, headers: bytes = b"") -> Refusal:
    """An error in another shape: its JSON, and the code by which it is counted."""
    response = Refusal(json(status, value, headers))
    response.code = code
    return response


def in_shape_of(path: bytes, response: bytes) -> bytes:
    """An error as the path's clients read it: those of InfluxDB 2 look for `message`, and have codes of their own."""
    if path != INFLUXDB2_WRITE:
        return response
    head, _, body = response.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    error = orjson.loads(body)
    error["message"] = error["error"]
    status = int(status_line[9:12])
    error["code"] = _INFLUXDB2_CODES.get(status, error["code"])
    return json(status, error, b"".join(b"%b\r\n" % line for line in lines if not line.startswith(_OF_JSON)))


def closing(response: bytes) -> bytes:
    """The same response, telling that the connection ends with it."""
    line_end = response.index(b"\r\n") + 2
    return response[:line_end] + b"Connection: close\r\n" + response[line_end:]


def without_body(response: bytes) -> bytes:
    """The answer to HEAD: the headers that GET would have given."""
    return response[: response.index(b"\r\n\r\n") + 4]


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
    "too many large bodies are arriving (server.max_inflight_mb); nothing was written",
    b"Retry-After: 1\r\n",
)
REQUEST_TIMEOUT: Final = error(408, "timeout", "the request did not arrive in time")
INTERNAL_ERROR: Final = error(500, "bug", "a bug in arcpipe; its log has the details, nothing was written")
