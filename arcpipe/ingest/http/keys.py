"""Idempotency keys as requests spell them.

Idempotency-Key: "8e03978e-40d5-43e8-bc93-6894a57f9324"    a string of RFC 8941
Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324      or bare
?idempotency_key=8e03978e-40d5-43e8-bc93-6894a57f9324      or in the query, always bare
"""

from __future__ import annotations

import re
from typing import Final

from arcpipe.errors import BadPayload

HEADER: Final = b"idempotency-key"
PARAMETER: Final = "idempotency_key"

MAX_KEY_CHARACTERS: Final = 128

# A bare key has none of the signs that mean something in a structured field, so two headers are never taken for one.
_BARE: Final = re.compile(rb"[!#-+\--:<-\[\]-~]+\Z")
_QUOTED: Final = re.compile(rb'"((?:[!#-\[\]-~]|\\["\\])*)"\Z')
_VISIBLE: Final = re.compile(r"[!-~]+\Z", re.ASCII)
_ESCAPED: Final = re.compile(rb"\\(.)")
_SHOWN_CHARACTERS: Final = 80

BARE_SIGNS: Final = bytes(sign if _BARE.match(bytes([sign])) else sign ^ 0x80 for sign in range(256))
"""A table for `bytes.translate`, which changes each sign but those of a bare key: faster than an expression."""
_QUOTED_SIGNS: Final = bytes(sign if _QUOTED.match(b'"%c"' % sign) else sign ^ 0x80 for sign in range(256))


def plain(value: bytes) -> bytes:
    """Read a key from the header's value, if it is a valid one without escaped signs, as nearly all are; else empty."""
    if value.translate(BARE_SIGNS) == value:
        return value if len(value) <= MAX_KEY_CHARACTERS else b""
    if len(value) > 2 and value[:1] == value[-1:] == b'"':
        key = value[1:-1]
        if len(key) <= MAX_KEY_CHARACTERS and key.translate(_QUOTED_SIGNS) == key:
            return key
    return b""


def in_header(value: bytes) -> bytes:
    """Read a key from the header's value. Raises BadPayload."""
    if _BARE.match(value) is not None:
        key = value
    else:
        quoted = _QUOTED.match(value)
        if quoted is None:
            shown = ascii(value[:_SHOWN_CHARACTERS].decode("latin-1"))
            raise BadPayload(
                f"header 'idempotency-key': {shown} is no key; send it once, as a string in quotes, or bare: visible "
                "ASCII characters except comma, semicolon, quote and backslash"
            )
        key = _ESCAPED.sub(rb"\1", quoted[1])
    _check_length(len(key), "header 'idempotency-key'")
    return key


def in_query(value: str) -> bytes:
    """Read a key from the decoded value of the query's parameter. Raises BadPayload."""
    where = f"query parameter '{PARAMETER}'"
    if value and _VISIBLE.match(value) is None:
        raise BadPayload(f"{where}: {value[:_SHOWN_CHARACTERS]!a} is no key; use visible ASCII characters")
    _check_length(len(value), where)
    return value.encode("ascii")


def _check_length(length: int, where: str) -> None:
    if not 1 <= length <= MAX_KEY_CHARACTERS:
        raise BadPayload(f"{where}: a key has 1 to {MAX_KEY_CHARACTERS} characters, and this one has {length}")
