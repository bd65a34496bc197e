"""The status page: one HTML file with its style and script inside, and the headers that go with it.

The page asks `/api/v1/status` each second and computes everything live (rates, quantiles, charts) from the differences
of the counters, so that showing it costs the server no more than one snapshot a second. It holds no data itself.
Knows nothing of HTTP beyond the header lines.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final


def _policy(page: bytes) -> bytes:
    """A Content-Security-Policy that allows exactly the page's own style and script, and asking its own server."""

    def inline(tag: bytes) -> bytes:
        found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        return b" ".join(b"'sha256-%b'" % base64.b64encode(hashlib.sha256(text).digest()) for text in found)

    return b"; ".join(
        (
            b"default-src 'none'",
            b"style-src " + inline(b"style"),
            b"script-src " + inline(b"script"),
            b"img-src data:",
            b"connect-src 'self'",
            b"base-uri 'none'",
            b"form-action 'none'",
            b"frame-ancestors 'none'",
        )
    )


PAGE: Final = files(__name__).joinpath("page.html").read_bytes()
"""The page, UTF-8."""

ETAG: Final = b'"%b"' % hashlib.sha256(PAGE).hexdigest()[:32].encode("ascii")

HEADERS: Final = b"".join(
    b"%b: %b\r\n" % header
    for header in (
        (b"Cache-Control", b"no-cache"),  # kept, but asked for each time: a new version shows at once
        (b"ETag", ETAG),
        (b"Content-Security-Policy", _policy(PAGE)),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"Referrer-Policy", b"no-referrer"),
    )
)
"""Whole header lines, each with its CRLF."""
