"""Known request heads, and their outlines: the bytes around the values that differ from request to request.

Nearly all requests are cut by an outline, so each line counts (`benchmarks.micro.request_cost`). To compare a slice is
faster than `startswith`. Lengths of values are guessed to be those of the request before, and searched for only if not.

The native kernel, where it is installed, cuts the plain heads of `Outline` and `KeyOutline`, and leaves them the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct, structs

from arcpipe.ingest.http import keys, request_ids
from arcpipe.native import KERNEL

if TYPE_CHECKING:
    from arcpipe_native import Outline as Kernel

    from arcpipe.codec.content_encoding import Coding
    from arcpipe.ingest.http.router import Handler

LENGTH: Final = b"content-length"
# Bytes up to the end of a line, from the start of a value; the parser reads longer values.
_REACH: Final = keys.MAX_KEY_CHARACTERS + 1
_PLAIN_SIGNS: Final = keys.BARE_SIGNS

Cut: TypeAlias = tuple[int, int, bytes, bytes]
"""The end of a head, the length of its body, its key, which is read already, and its id; both empty without one."""


class Head(Struct, eq=False):
    """The meaning of a head, as far as it is the same for each request."""

    method: bytes
    path: bytes
    query: bytes
    headers: dict[bytes, bytes]  # with the Content-Length of the first such request, and without the values that vary
    handler: Handler | None  # None if it is refused
    scope: str  # which the handler needs, if `auth.enabled`
    coding: Coding | None  # of the body
    answered: defaultdict[bytes, int]  # statuses of answers for its path

    def with_id(self, request_id: bytes) -> Head:
        """Return the same head with an X-Request-Id."""
        return structs.replace(self, headers={**self.headers, request_ids.HEADER: request_id})

    def without(self, names: Sequence[bytes]) -> Head:
        """Return the same head without some of its fields."""
        return structs.replace(self, headers={each: self.headers[each] for each in self.headers if each not in names})


class Outline:
    """Of heads in which the digits of the length vary alone."""

    __slots__ = ("_back", "_back_bytes", "_digits", "_front", "_front_bytes", "head")

    def __init__(self, head: Head, pieces: Sequence[bytes]) -> None:
        """Outline a head; the pieces are around the values that vary."""
        self.head = head
        self._front, self._back = pieces[0], pieces[-1]
        self._front_bytes, self._back_bytes = len(self._front), len(self._back)
        self._digits = 0

    def cut(self, data: bytes, start: int) -> Cut | None:
        """Cut a head that begins at `start`.

        Returns:
            None if the head has another outline, or a value that the parser must judge.
        """
        at = start + self._front_bytes
        if data[start:at] != self._front:
            return None
        stop = at + self._digits
        end = stop + self._back_bytes
        if data[stop:end] != self._back:
            stop = data.find(b"\r", at, at + _REACH)
            end = stop + self._back_bytes
            if stop < 0 or data[stop:end] != self._back:
                return None
            self._digits = stop - at
        digits = data[at:stop]
        return (end, int(digits), b"", b"") if digits.isdigit() else None


class KeyOutline(Outline):
    """Of heads with an idempotency key."""

    __slots__ = ("_first", "_key_is_first", "_middle", "_middle_bytes")

    def __init__(self, head: Head, pieces: Sequence[bytes], key_is_first: bool) -> None:
        super().__init__(head, pieces)
        self._key_is_first = key_is_first
        self._middle = pieces[1]
        self._middle_bytes = len(self._middle)
        self._first = 0

    def cut(self, data: bytes, start: int) -> Cut | None:
        at = start + self._front_bytes
        if data[start:at] != self._front:
            return None
        stop = at + self._first
        end = stop + self._middle_bytes
        if data[stop:end] != self._middle:
            stop = data.find(b"\r", at, at + _REACH)
            end = stop + self._middle_bytes
            if stop < 0 or data[stop:end] != self._middle:
                return None
            self._first = stop - at
        key = data[at:stop]
        stop = end + self._digits
        after = stop + self._back_bytes
        if data[stop:after] != self._back:
            stop = data.find(b"\r", end, end + _REACH)
            after = stop + self._back_bytes
            if stop < 0 or data[stop:after] != self._back:
                return None
            self._digits = stop - end
        digits = data[end:stop]
        if not self._key_is_first:
            key, digits = digits, key
        if key.translate(_PLAIN_SIGNS) != key:
            key = keys.plain(key)
        return (after, int(digits), key, b"") if key and digits.isdigit() else None


class VaryingOutline(Outline):
    """Of heads with any values that vary."""

    __slots__ = ("_names", "_pieces")

    def __init__(self, head: Head, pieces: Sequence[bytes], names: Sequence[bytes]) -> None:
        """Outline a head; the names are those of the values between the pieces."""
        super().__init__(head, pieces)
        self._pieces = pieces[1:]
        self._names = names

    def cut(self, data: bytes, start: int) -> Cut | None:
        at = start + self._front_bytes
        if data[start:at] != self._front:
            return None
        key = request_id = digits = b""
        for name, piece in zip(self._names, self._pieces, strict=True):
            stop = data.find(b"\r", at, at + _REACH)
            end = stop + len(piece)
            if stop < 0 or data[stop:end] != piece:
                return None
            value = data[at:stop]
            at = end
            if name is LENGTH:
                digits = value
            elif name is keys.HEADER:
                key = value = keys.plain(value)
            else:
                request_id = value = value if request_ids.is_harmless(value) else b""
            if not value:
                return None
        return (at, int(digits), key, request_id) if digits.isdigit() else None


AnyOutline: TypeAlias = "Outline | Kernel"

OUTLINE_KERNEL: Final[type[Kernel] | None] = None if KERNEL is None else KERNEL.Outline


def outline(head: Head, pieces: Sequence[bytes], names: Sequence[bytes], kernel: type[Kernel] | None) -> AnyOutline:
    """Outline a head.

    Args:
        pieces: what is around the values that vary: one more than these.
        names: of the fields of these values, in their order: LENGTH, and any of those of keys and ids.
        kernel: what cuts the plain heads; None without one.
    """
    head = head.without([name for name in names if name is not LENGTH])
    key_is_first = names[0] is keys.HEADER
    if len(names) == 1:
        found = Outline(head, pieces)
    elif len(names) == 2 and keys.HEADER in names:
        found = KeyOutline(head, pieces, key_is_first)
    else:
        return VaryingOutline(head, pieces, names)
    if kernel is None:
        return found
    return kernel(found, pieces[0], pieces[1] if len(pieces) == 3 else None, pieces[-1], key_is_first)
