"""Request heads that the parser has accepted before: clients send the same one with each request.

A head that is byte for byte the same, but for the digits of its Content-Length, means the same again: the parser need
not read it. So does one that differs in its X-Request-Id alone, which is another one with each request. What is judged
anew with each request (the length, the token, the database) is not kept here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from arcpipe.ingest.http import request_ids

if TYPE_CHECKING:
    from arcpipe.codec.content_encoding import Coding
    from arcpipe.ingest.http.router import Handler

# Longer heads are left to the parser.
MAX_HEAD_BYTES: Final = 2048
# A worker remembers so many heads, and of so many others that it has seen them once.
_HEADS_KEPT: Final = 512
_SEEN_KEPT: Final = 4096

# In front of the digits, in the two spellings that clients use.
LENGTH: Final = b"\r\nContent-Length: "
LENGTH_LOWER: Final = b"\r\ncontent-length: "
LENGTH_BYTES: Final = len(LENGTH)
# Digits of a length; more are left to the parser.
MAX_DIGITS: Final = 12

# Fields that make the parser do more than read a head and so many bytes, or a connection end.
_UNUSUAL: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"connection", b"proxy-connection"))


class Head(Struct, eq=False):
    """All that a head means that does not change from request to request."""

    method: bytes
    path: bytes
    query: bytes
    headers: dict[bytes, bytes]  # with the Content-Length of the request that it was learned from
    handler: Handler | None  # None of a head that is refused
    scope: str  # that the handler needs, if `auth.enabled`
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

    A dictionary hashes them with a key of this process alone: the time that a lookup takes says nothing of a token in
    them.
    """

    def __init__(self) -> None:
        self.known: dict[bytes, Head] = {}  # those that need not be read: all, or none
        self.known_but_for_id: dict[bytes, Head] = {}  # by their bytes without the id as well; all, or none, too
        self._all = self.known
        self._all_but_for_id = self.known_but_for_id
        self._seen: set[int] = set()

    def use(self, they_hold: bool) -> None:
        """Say whether requests with a known head are taken as they are, or whether the parser has to see all."""
        self.known = self._all if they_hold else {}
        self.known_but_for_id = self._all_but_for_id if they_hold else {}

    def but_for_id(self, key: bytes) -> Head | None:
        """The head of a request with an id that was not seen before, if all the rest of it is known.

        Args:
            key: a head without the digits of its length, which is none of `known`.
        """
        if not self.known_but_for_id:
            return None
        line = request_ids.LINE.search(key)
        if line is None:
            return None
        head = self.known_but_for_id.get(key[: line.start(1)] + key[line.end(1) :])
        return head.with_id(line[1]) if head is not None else None

    def learn(self, data: bytes, head: Head) -> None:
        """Takes note of a head of HTTP/1.1 that was accepted and does not end its connection.

        It is remembered when it comes the second time, so that heads that are all different drive out no others.

        Args:
            data: what the head stands at the beginning of.
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
        if key in known:  # of a request that did not come whole
            return
        if hash(key) not in self._seen:
            if len(self._seen) >= _SEEN_KEPT:
                self._seen.clear()
            self._seen.add(hash(key))
        elif _lines_of(data[:end]) == head.headers:
            if len(known) >= _HEADS_KEPT:
                known.clear()
            known[key] = head


def _lines_of(text: bytes) -> dict[bytes, bytes] | None:
    """The fields of a head that is written as nearly all are; None if it is not.

    What the parser has told must be all that is there: it leaves out blanks, and what it leaves out is not looked for.
    """
    fields = {}
    lines = text.split(b"\r\n")
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip(b" \t")
    if len(fields) != len(lines) - 1 or b"\r" in b"".join(lines) or b"\n" in b"".join(lines):
        return None
    return fields
