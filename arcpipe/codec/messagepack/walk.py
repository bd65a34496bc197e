"""Walk over MessagePack values: find where each ends, without reading what is in it.

`Walker` does so in C. `value_end` does it in Python, for values nested deeper than C code goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import repeat, starmap
from operator import length_hint
from typing import Final

import msgpack

from arcpipe.codec.effort import go_on
from arcpipe.codec.messagepack.layout import ARRAY, EXTENSION, INVALID, LAYOUT, MAP
from arcpipe.errors import BadPayload
from arcpipe.units import KB, MB

MAX_VALUE_BYTES: Final = 16 * MB
"""Bytes that a client's value may have in one piece. Longer ones are copied, and meanwhile no other thread runs."""

LONG_MARKERS: Final = b"\xc6\xc9\xdb"
"""The first bytes of values that may exceed `MAX_VALUE_BYTES` in one piece: a length of four bytes follows."""

CHUNK_BYTES: Final = 128 * KB
"""Bytes of a client's MessagePack per step. Decoding them holds up other threads for 5 ms and takes 75 times their
memory, at most: that of rows with one-letter names and one-byte values."""

# First feed of the unpacker. Each further feed doubles what it got, up to the largest one.
_FEED_BYTES: Final = 16 * KB
_TRUSTED_FEED_BYTES: Final = 256 * KB  # largest feed for values of the WAL; larger ones are no faster
_MAX_BUFFER: Final = (1 << 31) - 1  # bytes of one value that the unpacker can hold

# With this much of an unfinished value at hand, the piece that the unpacker waits for has one of LONG_MARKERS.
_CUT_BYTES: Final = 128 * KB

_TEXT_MARKERS: Final = (0xC5, 0xC6, 0xDA, 0xDB)  # binary and text with a length of two or four bytes


def value_end(data: bytes | memoryview, pos: int) -> int:
    """Return the offset after the value at `pos`, however deep it is nested. Raises BadPayload if it is not whole."""
    end, open_values = pos, 1
    size = len(data)
    while open_values:
        if end >= size:
            raise BadPayload(f"value at byte {pos} is cut off")
        kind, width, count = LAYOUT[data[end]]
        if width:
            count = int.from_bytes(data[end + 1 : end + 1 + width], "big")
        end += 1 + width
        open_values -= 1
        if kind == ARRAY:
            open_values += count
        elif kind == MAP:
            open_values += 2 * count
        elif kind != INVALID:
            end += count + (kind == EXTENSION and width > 0)  # the length of an extension does not count its code
        else:
            raise BadPayload(f"byte 0xc1 at {end - 1} is no MessagePack")
    if end > size:
        raise BadPayload(f"value at byte {pos} is cut off")
    return end


class LongValue(BadPayload):
    """A value has more than `MAX_VALUE_BYTES` in one piece."""

    def __init__(self, pos: int, size: int, where: str = "") -> None:
        super().__init__(f"the value at byte {pos} has {size} bytes, more than {MAX_VALUE_BYTES}{where}")


class Walker:
    """Pass over the values in `data`, in C: linear in the bytes passed, in little memory.

    `skip` passes any number of values of the WAL, whatever they are. `end_of` passes one value of a client, within
    bounds, and says what is wrong with a bad one. After an error of `end_of` a walker is of no more use, except after
    LongValue.
    """

    __slots__ = ("_check", "_fed", "_first", "_unpacker", "_view", "offset")

    def __init__(self, data: bytes | memoryview, offset: int = 0, check: Callable[[], None] = go_on) -> None:
        """Begin at `offset`.

        Args:
            check: as in `arcpipe.codec.effort`; `end_of` calls it.
        """
        self.offset = offset
        """The end of what was passed, where the next value begins."""
        self._view = memoryview(data)
        self._check = check
        self._unpacker: msgpack.Unpacker = None
        self._first = self._fed = offset  # where this unpacker began, and up to where it has the bytes

    def _begin(self, pos: int) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=_MAX_BUFFER)
        self._first = self._fed = self.offset = pos

    def _feed(self, largest: int) -> bool:
        """Give the unpacker more bytes. Return False if there are none."""
        fed = self._fed
        more = self._view[fed:][: min(max(_FEED_BYTES, fed - self._first), largest)]
        self._unpacker.feed(more)
        self._fed = fed + len(more)
        return bool(more)

    def skip(self, count: int) -> None:
        """Pass the next `count` values. Raises BadPayload if there are fewer."""
        if self._unpacker is None:
            self._begin(self.offset)
        calls = repeat((), count)
        try:
            if count == 1 and self._view[self.offset] in _TEXT_MARKERS:  # its length tells its end
                self._begin(value_end(self._view, self.offset))
                return
            while True:
                try:
                    deque(starmap(self._unpacker.skip, calls), maxlen=0)
                    break
                except msgpack.OutOfData:
                    if not self._feed(_TRUSTED_FEED_BYTES):
                        raise
                    calls = repeat((), length_hint(calls) + 1)  # goes on within the value
            self.offset = self._first + self._unpacker.tell()
        except (msgpack.UnpackException, ValueError, IndexError):  # nested too deep for it, or not whole
            end = self.offset
            for _ in range(count):
                end = value_end(self._view, end)
            self._begin(end)

    def end_of(self, pos: int) -> int:
        """Pass the value at `pos`, and return the offset after it.

        It is meant to go forward. Going back is right, but costs a new unpacker and `_FEED_BYTES` each time.

        Raises:
            LongValue: a string, binary value or extension in it has more than `MAX_VALUE_BYTES`.
            BadPayload: it is cut off, malformed, or nested more than 1024 deep; the text has the offset.
        """
        if not self.offset <= pos < self._fed:
            self._begin(pos)
        unpacker = self._unpacker
        if pos > self.offset:
            unpacker.read_bytes(pos - self.offset)
        while True:
            try:
                unpacker.skip()
                end: int = self._first + unpacker.tell()
                self.offset = end
                return end
            except msgpack.OutOfData:
                if self._fed - self._first >= _CUT_BYTES:
                    self._check()
                    self._refuse_long(self._first + unpacker.tell())
            except msgpack.FormatError:
                raise BadPayload(f"invalid MessagePack at byte {self._first + unpacker.tell()}") from None
            except msgpack.StackError:
                raise BadPayload(f"the value at byte {pos} is nested more than 1024 deep") from None
            try:
                if not self._feed(CHUNK_BYTES):
                    raise BadPayload(f"truncated MessagePack at byte {len(self._view)}")
            except msgpack.BufferFull:
                raise BadPayload(f"the value at byte {pos} is longer than 2 GiB") from None

    def _refuse_long(self, at: int) -> None:
        """Raise LongValue if the piece that begins at `at`, which the unpacker waits for, is too long.

        The unpacker copies what it has of such a piece again with each feed.
        """
        if self._fed - at >= _CUT_BYTES and self._view[at - 5] in LONG_MARKERS:
            size = int.from_bytes(self._view[at - 4 : at], "big")
            if size > MAX_VALUE_BYTES:
                self._begin(self.offset)  # the old unpacker stands within a value
                raise LongValue(at - 5, size)
