"""Whole HTTP/1.1 responses as bytes, built once where they can be."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import orjson


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode("ascii")


def empty(status: int) -> bytes:
    """A response without a body. 204 has no Content-Length by RFC 9110 §8.6."""
    length = b"" if status == HTTPStatus.NO_CONTENT else b"Content-Length: 0\r\n"
    return _status_line(status) + length + b"\r\n"


def json(status: int, value: Any, headers: bytes = b"") -> bytes:
    """A JSON response; `headers` are whole lines, each with its CRLF."""
    body = orjson.dumps(value)
    return b"".join(
        (
            _status_line(status),
            b"Content-Type: application/json\r\n",
            headers,
            b"Content-Length: %d\r\n\r\n" % len(body),
            body,
        )
    )


def error(status: int, code: str, reason: str, headers: bytes = b"") -> bytes:
    """`{"error": reason, "code": slug}`. The reason says what was wrong and where; it is meant for a person."""
    return json(status, {"error": reason, "code": code}, headers)


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
TOO_MANY_CONNECTIONS: Final = closing(
    error(503, "too_many_connections", "this worker has reached server.max_connections", b"Retry-After: 1\r\n")
)
REQUEST_TIMEOUT: Final = error(408, "timeout", "the request did not arrive in time")
INTERNAL_ERROR: Final = error(500, "bug", "a bug in arcpipe; its log has the details, nothing was written")
