"""Request heads that the parser has accepted before: clients send the same head with each request.

A head means the same again if it is the same byte for byte, except for the digits of its Content-Length. Then the
parser need not read it. The X-Request-Id or the Idempotency-Key may differ, too, as they do with each request. The
length, the token, the key and the database are judged anew with each request, and not kept here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from msgspec import Struct, structs

from arcpipe.ingest.http import keys, request_ids
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
_LENGTH: Final = b"\r\nContent-Length: "
_LENGTH_LOWER: Final = b"\r\ncontent-length: "
_LENGTH_BYTES: Final = len(_LENGTH)
# Digits of a length; the parser reads longer ones.
_MAX_DIGITS: Final = 12
# Before an idempotency key, in the two spellings, and the key.
_KEY: Final = b"\r\nIdempotency-Key: "
_KEY_LOWER: Final = b"\r\nidempotency-key: "
_KEY_VALUE: Final = re.compile(rb"[!-~]+(?=\r\n)")
# Bytes up to the end of the line, from the start of such a value or of a length.
_VALUE_REACH: Final = keys.MAX_PLAIN_BYTES + 1

# Fields with further effects on the body or the connection.
_UNUSUAL: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"connection", b"proxy-connection"))


class Head(Struct, eq=False):
    """The meaning of a head, as far as it is the same for each request."""

    method: bytes
    path: bytes
    query: bytes
    headers: dict[bytes, bytes]  # with the Content-Length of the first such request, and without its idempotency key
    handler: Handler | None  # None if it is refused
    scope: str  # which the handler needs, if `auth.enabled`
    coding: Coding | None  # of the body
    answered: defaultdict[bytes, int]  # statuses of answers for its path

    def with_id(self, request_id: bytes) -> Head:
        """Return the same head with another X-Request-Id."""
        return structs.replace(self, headers={**self.headers, request_ids.HEADER: request_id})

    def without(self, name: bytes) -> Head:
        """Return the same head without one of its fields."""
        return structs.replace(self, headers={each: self.headers[each] for each in self.headers if each != name})


class Outline:
    """A known head as bytes: all that is around the digits of its length, and around its one value that varies.

    Nearly all requests come through `cut`, so each line counts (`benchmarks.micro.request_cost`). To compare a slice
    is faster than `startswith`. Lengths are guessed to be those of the request before, and searched for only if not.
    """

    __slots__ = ("_back", "_first_bytes", "_front", "_middle", "_second_bytes", "_value_is_first", "head", "is_id")

    def __init__(self, head: Head, pieces: list[bytes], *, value_is_first: bool = False, is_id: bool = False) -> None:
        """Outline a head.

        Args:
            pieces: what is before, between and after its length and its value; two pieces if it has no value.
            value_is_first: whether the value is before the length.
            is_id: whether the value is the request's id; else it is its idempotency key.
        """
        self.head = head
        self.is_id = is_id
        self._value_is_first = value_is_first
        self._front, self._middle, self._back = pieces[0], pieces[1] if len(pieces) > 2 else b"", pieces[-1]
        self._first_bytes = self._second_bytes = 0

    def cut(self, data: bytes, start: int) -> tuple[int, bytes, bytes] | None:
        """Cut a head that begins at `start`.

        Returns:
            The end of the head, the digits of its length, and the key or the id in it. The key is read already, and
            empty in a head without one. None if the head has another outline, or a value that the parser must judge.
        """
        front, back = self._front, self._back
        at = start + len(front)
        if data[start:at] != front:
            return None
        middle = self._middle
        digits = b""
        if middle:
            stop = at + self._first_bytes
            end = stop + len(middle)
            if data[stop:end] != middle:
                stop = data.find(b"\r", at, at + _VALUE_REACH)
                end = stop + len(middle)
                if stop < 0 or data[stop:end] != middle:
                    return None
                self._first_bytes = stop - at
            digits = data[at:stop]
            at = end
        stop = at + self._second_bytes
        end = stop + len(back)
        if data[stop:end] != back:
            stop = data.find(b"\r", at, at + _VALUE_REACH)
            end = stop + len(back)
            if stop < 0 or data[stop:end] != back:
                return None
            self._second_bytes = stop - at
        if not middle:
            return end, data[at:stop], b""
        value = data[at:stop]
        if self._value_is_first:
            digits, value = value, digits
        value = (value if request_ids.is_harmless(value) else b"") if self.is_id else keys.plain(value)
        return (end, digits, value) if value else None


class Heads:
    """Heads by their bytes without the digits of the length, and without the one value that varies.

    The dictionary hashes them with a key of this process alone, so the time of a lookup tells nothing about a token.
    """

    def __init__(self) -> None:
        self.known: dict[bytes, Outline] = {}
        self.are_used = True  # else the parser reads all heads
        self._varying: set[bytes] = set()  # names of the fields whose values vary in some known heads
        self._seen: set[int] = set()

    def find(self, data: bytes, start: int) -> Outline | None:
        """Find the outline that the head at `start` may have."""
        limit = start + MAX_HEAD_BYTES
        at = data.find(_LENGTH, start, limit)
        if at < 0:
            at = data.find(_LENGTH_LOWER, start, limit)
            if at < 0:
                return None
        at += _LENGTH_BYTES
        stop = data.find(b"\r", at, at + _MAX_DIGITS + 1)
        end = data.find(b"\r\n\r\n", stop, limit) + 4
        if stop < 0 or end < 4:
            return None
        outline = self.known.get(data[start:at] + data[stop:end])
        if outline is not None:
            return outline
        for name in self._varying:
            cut = _VARYING[name](data, start, end)
            if cut is not None:
                outline = self.known.get(b"".join(_around(data, start, sorted(((at, stop), cut)), end)))
                if outline is not None:
                    return outline
        return None

    def learn(self, data: bytes, head: Head) -> None:
        """Learn a head of HTTP/1.1 that was accepted and does not end its connection.

        It is kept when it comes the second time, so that heads that all differ displace no others.

        Args:
            data: starts with the head.
        """
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        at = data.find(_LENGTH, 0, end)
        if at < 0:
            at = data.find(_LENGTH_LOWER, 0, end)
        if end < 0 or at < 0 or not _UNUSUAL.isdisjoint(head.headers):
            return
        at += _LENGTH_BYTES
        stop = data.find(b"\r", at, end + 1)
        pieces = [data[:at], data[stop : end + 4]]
        varying = b""
        value_is_first = False
        if request_ids.HEADER in head.headers or keys.HEADER in head.headers:
            varying = request_ids.HEADER if request_ids.HEADER in head.headers else keys.HEADER
            cut = _VARYING[varying](data, 0, end + 4)
            if cut is None or (varying == request_ids.HEADER and keys.HEADER in head.headers):
                return
            value_is_first = cut[0] < at
            pieces = _around(data, 0, sorted(((at, stop), cut)), end + 4)
        bytes_known = b"".join(pieces)
        if bytes_known in self.known:  # its request did not come in one read
            return
        if hash(bytes_known) not in self._seen:
            if len(self._seen) >= _SEEN_KEPT:
                self._seen.clear()
            self._seen.add(hash(bytes_known))
        elif _lines_of(data[:end]) == head.headers:
            if len(self.known) >= _HEADS_KEPT:
                self.known.clear()
            if varying:
                self._varying.add(varying)
                head = head.without(varying)
            outline = Outline(head, pieces, value_is_first=value_is_first, is_id=varying == request_ids.HEADER)
            self.known[bytes_known] = outline


def _key_in(data: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Find the idempotency key in a head."""
    at = data.find(_KEY, start, end)
    if at < 0:
        at = data.find(_KEY_LOWER, start, end)
        if at < 0:
            return None
    value = _KEY_VALUE.match(data, at + len(_KEY), end)
    return value.span() if value is not None else None


def _id_in(data: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Find the id of a request in its head."""
    line = request_ids.LINE.search(data, start, end)
    return line.span(1) if line is not None else None


# The fields that may have another value in each request.
_VARYING: Final = {request_ids.HEADER: _id_in, keys.HEADER: _key_in}


def _around(data: bytes, start: int, cuts: list[tuple[int, int]], end: int) -> list[bytes]:
    """Return the pieces from `start` to `end` that are around the cuts."""
    edges = [start, *(edge for cut in cuts for edge in cut), end]
    return [data[edges[place] : edges[place + 1]] for place in range(0, len(edges), 2)]


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
