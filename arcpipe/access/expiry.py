"""What has an end: certificates and tokens. When that is, and from when on somebody should be told.

Told of is what ends within two weeks, or within the last quarter of its life if that is less: certificates that live
for six days are renewed every four. A token, or an authority's certificate, that has ended is told of for another week,
as whoever still uses it is refused, unless another one ends soon. The server's own one is told of until there is
another.
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
# Seconds before the end, at most, and as a share of the whole life.
_WARN_SECONDS: Final = 14 * _DAY
_WARN_SHARE: Final = 0.25
_REMEMBERED_SECONDS: Final = 7 * _DAY

# Tags of DER (X.690) that the beginning of a certificate is made of.
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}


class Life(NamedTuple):
    """Something that ends. Times are seconds since the epoch."""

    name: str
    begins: float
    ends: float

    @property
    def warn_from(self) -> float:
        return self.ends - min(_WARN_SECONDS, _WARN_SHARE * max(0.0, self.ends - self.begins))


def next_to_end(lives: Iterable[Life], now: float) -> Life | None:
    """The one that somebody has to look after first; None if there is none.

    That is the first to end of those that are told of, and can still be renewed in time. Else it is the one that has
    ended last, or else the first to end.
    """

    def rank(life: Life) -> tuple[int, float]:
        if life.ends <= now:
            return 1, -life.ends
        return (0 if life.warn_from <= now else 2), life.ends

    found = [life for life in lives if life.ends > now - _REMEMBERED_SECONDS]
    return min(found, key=rank, default=None)


def date(seconds: float) -> str:
    """A time since the epoch for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def of_tokens(tokens: Iterable[Token]) -> list[Life]:
    """Those that have an end, by their ids; what is revoked opens nothing that could end."""
    return [
        Life(token.id, token.created.timestamp(), token.expires.timestamp())
        for token in tokens
        if token.expires is not None and token.revoked is None
    ]


def of_authorities(context: ssl.SSLContext) -> list[Life]:
    """The certificates that a context trusts, by the common names of their subjects."""
    return [
        Life(
            next((value for part in found.get("subject", ()) for kind, value in part if kind == "commonName"), "?"),
            float(ssl.cert_time_to_seconds(found["notBefore"])),
            float(ssl.cert_time_to_seconds(found["notAfter"])),
        )
        for found in cast("list[dict[str, Any]]", context.get_ca_certs())
    ]


def of_certificate(name: str, pem: bytes) -> Life | None:
    """The first certificate of a file; None if its dates cannot be read, although OpenSSL may take it."""
    block = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    try:
        return Life(name, *_validity(ssl.PEM_cert_to_DER_cert(block[0].decode("ascii")))) if block else None
    except (ValueError, IndexError, KeyError):
        return None


def _validity(der: bytes) -> tuple[float, float]:
    """The dates of a certificate (RFC 5280 §4.1): nothing of the standard library tells those of one's own."""
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
        # Two digits of a year from 50 on are of the last century (§4.1.2.5.1); strptime says so from 69 on.
        times.append(when.replace(year=when.year - 100 if tag == 0x17 and when.year >= 2050 else when.year).timestamp())
    return times[0], times[1]


def _element(der: bytes, at: int, expected: int | None = None) -> tuple[int, int, int]:
    """Tag, start and end of the content of the element at a place."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[start : start + size]), start + size
    if expected not in (None, tag) or start + length > len(der):
        raise ValueError
    return tag, start, start + length
