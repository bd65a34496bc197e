"""Request heads that the parser has accepted before: clients send the same head with each request.

A head means the same again if it is the same byte for byte, except for the digits of its Content-Length. Then the
parser need not read it. The X-Request-Id or the Idempotency-Key may differ, too, as they do with each request. The
length, the token, the key and the database are judged anew with each request, and not kept here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from arcpipe.ingest.http import request_ids
from arcpipe.ingest.http.exchange import KEY
from arcpipe.units import KB

if TYPE_CHECKING:
    from arcpipe.codec.content_encoding import Coding
    from arcpipe.ingest.http.router import Handler

# Bytes; the parser reads longer heads.
MAX_HEAD_BYTES: Final = 2 * KB
# Cache sizes: known heads, and hashes of heads seen once.
_HEADS_KEPT: Final = 512
_SEEN_KEPT: Final = 4096

# Before the digits, in the two spellings that clients use.
LENGTH: Final = b"\r\nContent-Length: "
LENGTH_LOWER: Final = b"\r\ncontent-length: "
LENGTH_BYTES: Final = len(LENGTH)
# Before an idempotency key, in the two spellings.
_KEY: Final = b"\r\nIdempotency-Key: "
_KEY_LOWER: Final = b"\r\nidempotency-key: "
_KEY_BYTES: Final = len(_KEY)
_HARMLESS: Final = re.compile(rb"[!-~]+(?=\r\n)")  # the parser judges any other value
# Digits of a length; the parser reads longer ones.
MAX_DIGITS: Final = 12

# Fields with further effects on the body or the connection.
_UNUSUAL: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"connection", b"proxy-connection"))


class Head(Struct, eq=False):
    """The meaning of a head, as far as it is the same for each request."""

    method: bytes
    path: bytes
    query: bytes
    headers: dict[bytes, bytes]  # with the Content-Length of the first such request
    handler: Handler | None  # None if it is refused
    scope: str  # which the handler needs, if `auth.enabled`
    coding: Coding | None  # of the body
    answered: defaultdict[bytes, int]  # statuses of answers for its path

    def with_id(self, request_id: bytes) -> Head:
        """Return the same head with another X-Request-Id."""
        headers = {**self.headers, request_ids.HEADER: request_id}
        return Head(
            *(self.method, self.path, self.query, headers, self.handler, self.scope, self.coding, self.answered)
        )


class Heads:
    """Heads by their bytes without the digits of the length.

    The dictionary hashes them with a key of this process alone, so the time of a lookup tells nothing about a token.
    """

    def __init__(self) -> None:
        self.known: dict[bytes, Head] = {}  # either all, or none while all heads must be parsed
        self.known_but_for_id: dict[bytes, Head] = {}  # the same, by their bytes without the id
        self.known_but_for_key: dict[bytes, Head] = {}  # the same, by their bytes without the idempotency key
        self._all = self.known
        self._all_but_for_id = self.known_but_for_id
        self._all_but_for_key = self.known_but_for_key
        self._seen: set[int] = set()

    def use(self, they_hold: bool) -> None:
        """Set whether known heads may be used; otherwise the parser reads all heads."""
        self.known = self._all if they_hold else {}
        self.known_but_for_id = self._all_but_for_id if they_hold else {}
        self.known_but_for_key = self._all_but_for_key if they_hold else {}

    def but_for_one_line(self, key: bytes) -> tuple[Head | None, bytes, bool]:
        """Find the head of a request with a new idempotency key or a new id, if the rest of the head is known.

        Args:
            key: a head without the digits of its length, and not in `known`.

        Returns:
            The head, or None. Its idempotency key, which `headers` do not have. Whether its client sent an id.
        """
        if self.known_but_for_key:
            at, stop = _key_in(key)
            head = self.known_but_for_key.get(key[:at] + key[stop:]) if at else None
            if head is not None:
                return head, key[at:stop], False
        if self.known_but_for_id:
            line = request_ids.LINE.search(key)
            head = self.known_but_for_id.get(key[: line.start(1)] + key[line.end(1) :]) if line is not None else None
            if line is not None and head is not None:
                return head.with_id(line[1]), b"", True
        return None, b"", False

    def learn(self, data: bytes, head: Head) -> None:
        """Learn a head of HTTP/1.1 that was accepted and does not end its connection.

        It is kept when it comes the second time, so that heads that all differ displace no others.

        Args:
            data: starts with the head.
        """
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        at = data.find(LENGTH, 0, end)
        if at < 0:
            at = data.find(LENGTH_LOWER, 0, end)
        if end < 0 or at < 0 or not _UNUSUAL.isdisjoint(head.headers):
            return
        at += LENGTH_BYTES
        stop = data.find(b"\r", at, end + 1)
        key = data[:at] + data[stop : end + 4]
        known = self._all
        if request_ids.HEADER in head.headers:
            line = request_ids.LINE.search(key)
            if line is None:
                return
            key = key[: line.start(1)] + key[line.end(1) :]
            known = self._all_but_for_id
        elif KEY in head.headers:
            at, stop = _key_in(key)
            if not at:
                return
            key = key[:at] + key[stop:]
            known = self._all_but_for_key
        if key in known:  # its request did not come in one read
            return
        if hash(key) not in self._seen:
            if len(self._seen) >= _SEEN_KEPT:
                self._seen.clear()
            self._seen.add(hash(key))
        elif _lines_of(data[:end]) == head.headers:
            if len(known) >= _HEADS_KEPT:
                known.clear()
            known[key] = head


def _key_in(head: bytes) -> tuple[int, int]:
    """Find the value of the idempotency key: its start and its end; zeros without one that is harmless."""
    at = head.find(_KEY)
    if at < 0:
        at = head.find(_KEY_LOWER)
        if at < 0:
            return 0, 0
    value = _HARMLESS.match(head, at + _KEY_BYTES)
    return value.span() if value is not None else (0, 0)


def _lines_of(text: bytes) -> dict[bytes, bytes] | None:
    """Return the fields of a head in the usual notation; None for any other notation.

    The parser leaves out some blanks, so its fields may not show all of the head. This finds out whether they do.
    """
    fields = {}
    lines = text.split(b"\r\n")
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip(b" \t")
    if len(fields) != len(lines) - 1 or b"\r" in b"".join(lines) or b"\n" in b"".join(lines):
        return None
    return fields
