"""Expiry of certificates and tokens: when each expires, and from when on an operator is warned.

The warning begins two weeks before the end, or at the last quarter of the life if that is later: certificates that live
for six days are renewed every four. For an expired token, or an expired authority's certificate, the warning goes on
for another week, because its users are refused, unless another one expires soon. For the server's own certificate it
goes on until there is a new one.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

if TYPE_CHECKING:
    from arcpipe.access.tokens import Token

_DAY: Final = 86_400.0
# The warning begins this long before the end, at most, and at this share of the whole life.
_WARN_SECONDS: Final = 14 * _DAY
_WARN_SHARE: Final = 0.25
# Time after the end in which the warning goes on.
_REMEMBERED_SECONDS: Final = 7 * _DAY

# Tags of DER (X.690) at the beginning of a certificate.
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}


class Life(NamedTuple):
    """The life of a certificate or token. Times are seconds since the epoch."""

    name: str
    begins: float
    ends: float

    @property
    def warn_from(self) -> float:
        """When the warning begins."""
        return self.ends - min(_WARN_SECONDS, _WARN_SHARE * max(0.0, self.ends - self.begins))


def next_to_end(lives: Iterable[Life], now: float) -> Life | None:
    """Return the most urgent one; None if there is none.

    That is the first to expire of those that are warned of. If there is none, it is the one that expired last; if none
    has expired, the first to expire.
    """

    def rank(life: Life) -> tuple[int, float]:
        if life.ends <= now:
            return 1, -life.ends
        return (0 if life.warn_from <= now else 2), life.ends

    found = [life for life in lives if life.ends > now - _REMEMBERED_SECONDS]
    return min(found, key=rank, default=None)


def date(seconds: float) -> str:
    """Format a time in seconds since the epoch for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def of_tokens(tokens: Iterable[Token]) -> list[Life]:
    """Return the lives of tokens that expire, named by their ids, without revoked ones."""
    return [
        Life(token.id, token.created.timestamp(), token.expires.timestamp())
        for token in tokens
        if token.expires is not None and token.revoked is None
    ]


def of_authorities(context: ssl.SSLContext) -> list[Life]:
    """Return the lives of the certificates that a context trusts, named by the common names of their subjects."""
    return [
        Life(
            next((value for part in found.get("subject", ()) for kind, value in part if kind == "commonName"), "?"),
            float(ssl.cert_time_to_seconds(found["notBefore"])),
            float(ssl.cert_time_to_seconds(found["notAfter"])),
        )
        for found in cast("list[dict[str, Any]]", context.get_ca_certs())
    ]


def of_certificate(name: str, pem: bytes) -> Life | None:
    """Return the life of the first certificate in a file; None if its dates cannot be read."""
    block = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    try:
        return Life(name, *_validity(ssl.PEM_cert_to_DER_cert(block[0].decode("ascii")))) if block else None
    except (ValueError, IndexError, KeyError):
        return None


def _validity(der: bytes) -> tuple[float, float]:
    """Return the dates of a certificate (RFC 5280 §4.1); the standard library has no function for one's own."""
    _, start, _ = _element(der, 0, _SEQUENCE)  # Certificate
    _, at, _ = _element(der, start, _SEQUENCE)  # TBSCertificate
    tag, _, end = _element(der, at)
    if tag == _VERSION:
        at = end
    for _ in range(3):  # serial number, algorithm of the signature, issuer
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at, _SEQUENCE)  # Validity
    times = []
    for _ in range(2):
        tag, start, at = _element(der, at)
        when = datetime.strptime(der[start:at].decode("ascii"), _TIMES[tag]).replace(tzinfo=UTC)
        # Two-digit years from 50 on are of the last century (§4.1.2.5.1); for strptime they begin at 69.
        times.append(when.replace(year=when.year - 100 if tag == 0x17 and when.year >= 2050 else when.year).timestamp())
    return times[0], times[1]


def _element(der: bytes, at: int, expected: int | None = None) -> tuple[int, int, int]:
    """Return the tag of the element at an offset, and start and end of its content.

    Raises:
        ValueError: it has another tag than expected, or is cut off.
    """
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[start : start + size]), start + size
    if expected not in (None, tag) or start + length > len(der):
        raise ValueError
    return tag, start, start + length
