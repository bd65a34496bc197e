"""Request heads that the parser has accepted before: clients send the same head with each request.

A head means the same again if it is the same byte for byte, except for the digits of its Content-Length, its
X-Request-Id and its Idempotency-Key, which may be others with each request. Then the parser need not read it. The
length, the token, the key and the database are judged anew with each request, and not kept here.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from arcpipe.ingest.http import keys, request_ids
from arcpipe.ingest.http.outlines import LENGTH, OUTLINE_KERNEL, AnyOutline, Head, outline
from arcpipe.units import KB

# Bytes; the parser reads longer heads.
MAX_HEAD_BYTES: Final = 2 * KB
# Cache sizes: known heads, and hashes of heads seen once.
_HEADS_KEPT: Final = 512
_SEEN_KEPT: Final = 4096

# Before the digits, in the two spellings that clients use.
_LENGTH_LINE: Final = b"\r\nContent-Length: "
_LENGTH_LOWER: Final = b"\r\ncontent-length: "
_LENGTH_BYTES: Final = len(_LENGTH_LINE)
# Digits of a length; the parser reads longer ones.
_MAX_DIGITS: Final = 12
# Before a key and an id, in the spellings that clients use, and their values. An expression for the names takes 4 µs.
_KEYS: Final = (b"\r\nIdempotency-Key: ", b"\r\nidempotency-key: ")
_KEY_VALUE: Final = re.compile(rb"[!-~]+(?=\r\n)")
_IDS: Final = (b"\r\nX-Request-Id: ", b"\r\nX-Request-ID: ", b"\r\nx-request-id: ")

# Fields with further effects on the body or the connection.
_UNUSUAL: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"connection", b"proxy-connection"))


class Heads:
    """Heads by their bytes without the values that vary: the digits of the length, the key, and the id.

    The dictionary hashes them with a key of this process alone, so the time of a lookup tells nothing about a token.
    """

    def __init__(self) -> None:
        self.known: dict[bytes, AnyOutline] = {}
        self.are_used = True  # else the parser reads all heads
        self.kernel = OUTLINE_KERNEL  # what cuts the plain ones; None: Python
        self._varying: set[bytes] = set()  # names of the fields whose values vary in some known heads
        self._seen: set[int] = set()

    def find(self, data: bytes, start: int) -> AnyOutline | None:
        """Find the outline that the head at `start` may have."""
        limit = start + MAX_HEAD_BYTES
        at = data.find(_LENGTH_LINE, start, limit)
        if at < 0:
            at = data.find(_LENGTH_LOWER, start, limit)
            if at < 0:
                return None
        at += _LENGTH_BYTES
        stop = data.find(b"\r", at, at + _MAX_DIGITS + 1)
        end = data.find(b"\r\n\r\n", stop, limit) + 4
        if stop < 0 or end < 4:
            return None
        cuts = []
        for name in self._varying:
            cut = _VARYING[name](data, start, end)
            if cut is not None:
                cuts.append(cut)
        if not cuts:
            return self.known.get(data[start:at] + data[stop:end])
        return self.known.get(b"".join(_around(data, start, sorted([*cuts, (at, stop)]), end)))

    def learn(self, data: bytes, head: Head) -> None:
        """Learn a head of HTTP/1.1 that was accepted and does not end its connection.

        It is kept when it comes the second time, so that heads that all differ displace no others.

        Args:
            data: starts with the head.
        """
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        at = data.find(_LENGTH_LINE, 0, end)
        if at < 0:
            at = data.find(_LENGTH_LOWER, 0, end)
        if end < 0 or at < 0 or not _UNUSUAL.isdisjoint(head.headers):
            return
        at += _LENGTH_BYTES
        stop = data.find(b"\r", at, end + 1)
        cuts = [(at, stop, LENGTH)]
        for name, find in _VARYING.items():
            if name in head.headers:
                cut = find(data, 0, end + 4)
                if cut is None:
                    return
                cuts.append((*cut, name))
        pieces = [data[:at], data[stop : end + 4]]
        if len(cuts) > 1:
            cuts.sort()
            pieces = _around(data, 0, [cut[:2] for cut in cuts], end + 4)
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
            names = [name for _, _, name in cuts]
            self._varying.update(name for name in names if name is not LENGTH)
            self.known[bytes_known] = outline(head, pieces, names, self.kernel)


def _value_in(
    names: tuple[bytes, ...], value: re.Pattern[bytes], data: bytes, start: int, end: int
) -> tuple[int, int] | None:
    """Find a value in a head, by the ways to write what is before it."""
    for name in names:
        at = data.find(name, start, end)
        if at >= 0:
            found = value.match(data, at + len(name), end)
            return found.span() if found is not None else None
    return None


# The fields that may have another value in each request.
_VARYING: Final = {
    request_ids.HEADER: partial(_value_in, _IDS, request_ids.VALUE),
    keys.HEADER: partial(_value_in, _KEYS, _KEY_VALUE),
}


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
