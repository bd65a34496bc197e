"""Idempotency keys: read from a request, and remembered by the worker that acknowledged them.

    Idempotency-Key: "8e03978e-40d5-43e8-bc93-6894a57f9324"    a string of RFC 8941
    Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324      or bare
    ?idempotency_key=8e03978e-40d5-43e8-bc93-6894a57f9324      or in the query, always bare

The key goes into the meta of the request's entry. There the uploader finds it, which alone sees all workers: it uploads
the first entry of a key and drops the others (`upload.key_window`). That is the guarantee.

`RecentKeys` is a saving. A worker remembers the keys that it acknowledged last, and answers a retry without writing it
again. It notes a key only once its group is as durable as `wal.sync_mode` says. A retry that comes before is written
like any other request.

A key belongs to a database and to a token. So nobody learns the keys of another token by `Idempotency-Replayed`, and
nobody uses up a key that another token will send.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from arcpipe.errors import BadPayload

PARAMETER: Final = "idempotency_key"
REPLAYED: Final = b"Idempotency-Replayed: true\r\n"
"""The line of an answer to a request that was not written again."""

MAX_KEY_CHARACTERS: Final = 128
# A bare key has none of the signs that mean something in a structured field, so two headers are never taken for one.
_BARE: Final = re.compile(rb"[!#-+\--:<-\[\]-~]+\Z")
_QUOTED: Final = re.compile(rb'"((?:[!#-\[\]-~]|\\["\\])*)"\Z')
_VISIBLE: Final = re.compile(r"[!-~]+\Z", re.ASCII)
_ESCAPED: Final = re.compile(rb"\\(.)")
_SHOWN_CHARACTERS: Final = 80

# Keys that a worker remembers, at most: about 20 MB.
RECENT_KEYS: Final = 65_536


Identity: TypeAlias = tuple[str, str | None, bytes]
"""A key with all that it belongs to: database, id of the sender's token (None without `auth.enabled`), and key.

Like `Content` a plain tuple, because each request makes one.
"""
Content: TypeAlias = tuple[int, int]
"""The encoded body of a request, as far as it is compared with that of a retry: bytes and CRC32."""


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


class RecentKeys:
    """The keys that one worker acknowledged last, in two generations: the older one is dropped as a whole.

    So it is bounded, and a key is never known for longer than the window. For one event loop.
    """

    def __init__(self, window_seconds: float, limit: int = RECENT_KEYS) -> None:
        """Begin with nothing.

        Args:
            window_seconds: the most that a key is known for.
            limit: the most keys that are known.
        """
        self._half_seconds = window_seconds / 2
        self._half_limit = max(1, limit // 2)
        self._began = self._old_began = 0.0  # of the two generations
        self._young: dict[Identity, Content] = {}
        self._old: dict[Identity, Content] = {}

    def find(self, identity: Identity, now: float) -> Content | None:
        """Return the content of the request that had this key; None if it is not known.

        Args:
            now: seconds of a clock that is the same for `note`.
        """
        if now - self._began >= self._half_seconds:
            self._turn(now)
        found = self._young.get(identity)
        if found is None and now - self._old_began < 2 * self._half_seconds:
            found = self._old.get(identity)
        return found

    def note(self, identity: Identity, content: Content, now: float) -> None:
        """Remember a request that was acknowledged."""
        if len(self._young) >= self._half_limit or now - self._began >= self._half_seconds:
            self._turn(now)
        self._young.setdefault(identity, content)

    def _turn(self, now: float) -> None:
        self._old, self._old_began = self._young, self._began
        self._young, self._began = {}, now
