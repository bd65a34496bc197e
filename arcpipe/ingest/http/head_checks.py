"""Checks of a request's head that the parser leaves out: its sizes, its version, and the fields that frame the body.

Besides these, the parser is lax only about empty lines before a request and several blanks in its first line, which are
harmless.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from arcpipe.ingest.http import responses
from arcpipe.units import KB, MB

if TYPE_CHECKING:
    from arcpipe.ingest.http.limits import Limits

# Bytes of a header line besides name and value: colon, blank, line end.
LINE_SIGNS: Final = 4
# Digits of a Content-Length, at most. No body is that large, and Python itself refuses to read thousands of digits.
LENGTH_DIGITS: Final = 19
# A Host field (RFC 9110 §7.2) in the characters of names and addresses. One that was sent twice does not match, because
# its values are joined with a comma. Some clients put the scheme of their URL before it.
_HOST: Final = re.compile(rb"(?:(?i:https?)://)?(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-fv:.]+\])(?::[0-9]*)?\Z")
# Valid values of Host that one worker remembers, so that each is matched once: clients use few.
_HOSTS_KEPT: Final = 1024
_HOST_BYTES: Final = 272  # of each; a name has 253 at most


class Refused(Exception):
    """Raised within a parser callback, to end the connection with this response."""

    def __init__(self, response: bytes) -> None:
        super().__init__()
        self.response = response


def malformed(reason: str) -> responses.Refusal:
    """Make the answer to bytes that are no HTTP request."""
    return responses.error(400, "bad_request", f"malformed HTTP request: {reason}")


def header_too_large(limits: Limits) -> responses.Refusal:
    """Make the answer to a head, or a trailer, above `server.max_header_kb`."""
    limit = limits.max_header // KB
    return responses.error(431, "header_too_large", f"request line and headers exceed server.max_header_kb = {limit}")


def body_too_large(limits: Limits, what: str = "body") -> responses.Refusal:
    """Make the answer to a body above `server.max_body_mb`."""
    limit = limits.max_body // MB
    return responses.error(413, "body_too_large", f"the {what} exceeds server.max_body_mb = {limit}")


def url_too_long(limits: Limits) -> responses.Refusal:
    """Make the answer to a URL above `server.max_url_kb`."""
    return responses.error(414, "url_too_long", f"the URL exceeds server.max_url_kb = {limits.max_url // KB}")


def head_bytes(url: bytes, headers: dict[bytes, bytes], lines: int) -> int:
    """Return the size of a head, without the fixed parts of a request line."""
    # Joining a few short texts takes less time than summing up their sizes.
    return len(url) + len(b"".join([*headers, *headers.values()])) + LINE_SIGNS * (lines + 1)


def size_refusal(limits: Limits, lines: int) -> responses.Refusal:
    """Make the refusal of a head with too many lines, or else too many bytes."""
    if lines > limits.max_headers:
        reason = f"there are more headers than server.max_headers = {limits.max_headers}"
        return responses.error(431, "header_too_large", reason)
    return header_too_large(limits)


def is_http_1_0(version: str) -> bool:
    """Return whether a request is of HTTP/1.0.

    Raises:
        Refused: it is of neither 1.0 nor 1.1.
    """
    if version not in ("1.0", "1.1"):
        raise Refused(malformed(f"HTTP version {version} is not supported"))
    return version == "1.0"


def check_host(headers: dict[bytes, bytes], is_http_1_0: bool, known: set[bytes]) -> None:
    """Check the Host field.

    Args:
        known: valid values so far, without this one; this is added if it is valid.

    Raises:
        Refused: RFC 9112 §3.2 has 400 for a request without a Host, with more than one, or with a malformed one.
    """
    host = headers.get(b"host")
    if host is None:
        if is_http_1_0:
            return
        raise Refused(malformed("there is no Host header"))
    if _HOST.match(host) is None:
        raise Refused(malformed("the Host header is given twice or malformed"))
    if len(known) < _HOSTS_KEPT and len(host) <= _HOST_BYTES:
        known.add(host)


def authority_of(host: bytes) -> bytes:
    """Return a valid Host field without the scheme that some clients put before it."""
    return host.rpartition(b"://")[2]


def check_transfer_encoding(coding: bytes, is_http_1_0: bool) -> None:
    """Check the Transfer-Encoding.

    Raises:
        Refused: it is anything but `chunked`, or stands in a request of HTTP/1.0.
    """
    if is_http_1_0 or coding.rstrip(b" \t").lower() != b"chunked":
        raise Refused(malformed("the only Transfer-Encoding is chunked, once, and in HTTP/1.1"))


NO_LENGTH: Final = malformed(f"Content-Length has more than {LENGTH_DIGITS} digits")
LENGTH_REQUIRED: Final = responses.error(
    411,
    "length_required",
    "a write needs Content-Length, or in HTTP/1.1 Transfer-Encoding: chunked; nothing was written",
)


def path_of_url(target: bytes) -> bytes:
    """Return the path of a target that is a whole URL (RFC 9112 §3.2.2); any other target unchanged."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return target
    return b"/" + rest.partition(b"/")[2]
